"""Runs the authors' code for `peers.py`, in an environment of its own: torch, safetensors and transformers 4.37.2.

    python peers_worker.py CHECKOUT FOLDER

Reads commands from standard input (dense, frozen, contributions) and prints the seconds that each took; what came out
is written to FOLDER. The frozen layers come from REPLACED_LAYERS, which their code reads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    checkout, folder = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, checkout)
    from llava.model.language_model import llava_llama  # type: ignore[import-not-found]

    switch = llava_llama.temp_cache
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    visual_tokens = config.pop("visual_tokens")
    weights = load_file(folder / "weights.safetensors")
    embeddings = load_file(folder / "embeddings.safetensors")["embeddings"]

    def build(layers: str, *, contributions: bool = False) -> Any:
        os.environ["REPLACED_LAYERS"] = layers
        switch.cal_lc = contributions
        model = llava_llama.LlavaLlamaForCausalLM(llava_llama.LlavaConfig(**config))
        model.load_state_dict(weights, assign=True)
        model.model.n_visual = visual_tokens
        return model.eval()

    frozen = os.environ["REPLACED_LAYERS"]
    models = {
        "dense": build(""),
        "frozen": build(frozen),
        "contributions": build("", contributions=True),
    }

    def run(command: str) -> torch.Tensor:
        if command != "contributions":
            switch.cal_lc = False
            return models[command](inputs_embeds=embeddings[:1], use_cache=True).logits
        switch.cal_lc, switch.LC_total = True, []
        for sample in embeddings:
            models[command](inputs_embeds=sample[None], use_cache=False)
        return torch.tensor(switch.LC_total)

    with torch.inference_mode():
        for line in sys.stdin:
            command = line.strip()
            start = time.perf_counter()
            result = run(command)
            seconds = time.perf_counter() - start
            save_file({"result": result.contiguous()}, folder / f"{command}.safetensors")
            print("seconds", seconds, flush=True)


if __name__ == "__main__":
    main()

"""Prefill and Layer Contribution beside the authors' own code, on the same weights and embeddings.

    git clone https://github.com/icip-cas/ShortV
    python3 -m venv theirs
    theirs/bin/pip install torch==2.13.0 transformers==4.37.2 accelerate sentencepiece einops requests pillow
    python benchmarks/peers.py --checkout ShortV --python theirs/bin/python
    python benchmarks/peers.py --checkout ShortV --python theirs/bin/python --samples 3 --layers 8 --hidden-size 256

Their code needs transformers 4.37.2, so it runs in a process of its own (`peers_worker.py`). Both processes are loaded
before anything is measured, and each round runs every side once, one after the other. Their code reads the layers from
an environment variable and takes one picture after 35 tokens; so does this comparison. FastV is ours (see
`shortv_export.evaluation`): it drops half of the visual tokens after the second layer.

Compared are the logits of both models, dense and frozen, and the Layer Contributions: theirs are the reverse of the
paper's Eq. 2, so ours are measured with `--divergence reverse`. Weights are random; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.contribution import llava_shaped
from benchmarks.prefill import remote_code
from shortv_export.evaluation.baselines import FASTV_DROP, fastv
from shortv_export.measure.layer_contribution import layer_contributions
from shortv_export.options import Scoring
from shortv_export.records import library_versions
from tests.support.large_base import PATCH

IMAGE_START = 35
"""Where their code expects the picture."""


class Theirs:
    """The authors' code in a process of its own: it answers each command with seconds."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, frozen: list[int]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [arguments.python, str(Path(__file__).with_name("peers_worker.py")), arguments.checkout, str(folder)],
            env=os.environ
            | {"REPLACED_LAYERS": ",".join(map(str, frozen)), "OMP_NUM_THREADS": str(arguments.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # libraries print, too
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"the authors' code ended at {command!r}.")

    def result(self, name: str) -> torch.Tensor:
        return load_file(self.folder / f"{name}.safetensors")["result"]


class Ours:
    """The stock model of transformers, and the published code with the same weights."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        side = round(arguments.visual_tokens**0.5)
        self.stock = llava_shaped(arguments.layers, PATCH * side, arguments.hidden_size)
        self.frozen = list(range(arguments.layers - round(0.6 * arguments.layers), arguments.layers))
        self.shortv, self.unfrozen = (published(self.stock, frozen) for frozen in (self.frozen, []))
        generator = torch.Generator().manual_seed(0)
        words, count = self.stock.config.text_config.vocab_size, arguments.samples
        text = torch.randint(6, words, (count, IMAGE_START + arguments.text_after), generator=generator)
        image = torch.full((count, side * side), self.stock.config.image_token_id)
        self.ids = torch.cat([text[:, :IMAGE_START], image, text[:, IMAGE_START:]], dim=1)
        self.pictures = torch.randn(count, 3, PATCH * side, PATCH * side, generator=generator)
        self.visual = self.ids == self.stock.config.image_token_id
        self.embeddings = self.merged()
        self.results: dict[str, torch.Tensor] = {}

    def merged(self) -> torch.Tensor:
        """The embeddings that the language model gets, ``(samples, tokens, hidden)``."""
        seen: list[torch.Tensor] = []

        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["inputs_embeds"])

        handle = self.stock.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
        self.stock(input_ids=self.ids, pixel_values=self.pictures, logits_to_keep=1)
        handle.remove()
        return seen[0]

    def dense(self) -> None:
        self.results["dense"] = self.stock(inputs_embeds=self.embeddings[:1], use_cache=True).logits

    def shortv_prefill(self) -> None:
        output = self.shortv(inputs_embeds=self.embeddings[:1], visual_mask=self.visual[:1], use_cache=True)
        self.results["frozen"] = output.logits

    def fastv(self) -> None:
        inputs = {"inputs_embeds": self.embeddings[:1], "visual_mask": self.visual[:1]}
        with fastv(FASTV_DROP).apply(self.unfrozen, inputs):
            self.unfrozen(**inputs, use_cache=True)

    def contributions(self) -> None:
        scoring = Scoring(operators=False, divergence="reverse")
        samples = [
            {
                "input_ids": self.ids[i : i + 1],
                "pixel_values": self.pictures[i : i + 1],
                "attention_mask": torch.ones_like(self.ids[i : i + 1]),
            }
            for i in range(len(self.ids))
        ]
        found = layer_contributions(self.stock, samples, scoring=scoring)
        self.results["contributions"] = torch.stack([each["visual"] for each in found])


def published(stock: Any, frozen: list[int]) -> Any:
    """A model of the published code with the weights of a stock model, which are shared."""
    configuration, modeling = remote_code()
    config = configuration.ShortVLlavaConfig(**stock.config.to_dict() | {"frozen_layers": frozen})
    model = modeling.ShortVLlavaForConditionalGeneration._from_config(config, dtype=stock.dtype)
    model.load_state_dict(stock.state_dict(), assign=True)
    return model.eval()


def hand_over(ours: Ours, folder: Path) -> None:
    """Writes what their code loads: a plain Llama and the embeddings of the samples."""
    state = {
        name.replace("model.language_model.", "model."): value.contiguous()
        for name, value in ours.stock.state_dict().items()
        if "vision" not in name and "projector" not in name
    }
    save_file(state, folder / "weights.safetensors")
    save_file({"embeddings": ours.embeddings.contiguous()}, folder / "embeddings.safetensors")
    text = ours.stock.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = {name: getattr(text, name) for name in (*names, "num_key_value_heads", "rms_norm_eps")}
    config["rope_theta"] = text.rope_parameters["rope_theta"]
    config["visual_tokens"] = int(ours.visual[0].sum())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def compare(ours: Ours, theirs: Theirs, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every side, in rounds; the first round warms up."""

    def timed(function: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start

        return run

    sides = {
        "dense, transformers": timed(ours.dense),
        "dense, authors": lambda: theirs("dense"),
        "frozen, ours": timed(ours.shortv_prefill),
        "frozen, authors": lambda: theirs("frozen"),
        "FastV, ours": timed(ours.fastv),
        "contributions, ours": timed(ours.contributions),
        "contributions, authors": lambda: theirs("contributions"),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.repeats + 1):
        for name, run in sides.items():
            if name.startswith("contributions") and number > arguments.walks:
                continue
            seconds = run()
            if number:
                times[name].append(seconds)
    return {name: values for name, values in times.items() if values}


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, help="folder of the authors' repository")
    parser.add_argument("--python", required=True, help="interpreter of an environment that their code runs in")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--visual-tokens", type=int, default=576, help="a square number")
    parser.add_argument("--text-after", type=int, default=29, help="text tokens after the picture; 35 are before it")
    parser.add_argument("--samples", type=int, default=1, help="for Layer Contributions")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--walks", type=int, default=3, help="rounds that measure Layer Contributions, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="where to save the results as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    with torch.inference_mode(), tempfile.TemporaryDirectory() as name:
        ours = Ours(arguments)
        hand_over(ours, Path(name))
        theirs = Theirs(arguments, Path(name), ours.frozen)
        times = compare(ours, theirs, arguments)
        agreement = {
            "dense logits": relative(ours.results["dense"], theirs.result("dense")),
            "frozen logits": relative(ours.results["frozen"], theirs.result("frozen")),
        }
        if "contributions" in ours.results:
            one, other = (
                each[:, :-1].double() for each in (ours.results["contributions"], theirs.result("contributions"))
            )
            agreement["contributions, each relative"] = float(((one - other).abs() / other.abs()).max())
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in median.items():
        print(f"  {name:24} {seconds:8.3f} s   least {min(times[name]):8.3f} s")

    def ratio(one: str, other: str) -> float:
        """The median of each round's ratio, since a slow moment affects both sides of a round."""
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    ratios = {
        "ours, frozen / dense": ratio("frozen, ours", "dense, transformers"),
        "authors, frozen / dense": ratio("frozen, authors", "dense, authors"),
        "frozen, ours / authors": ratio("frozen, ours", "frozen, authors"),
        "FastV / dense": ratio("FastV, ours", "dense, transformers"),
    }
    if "contributions, ours" in times:
        ratios["contributions, authors / ours"] = ratio("contributions, authors", "contributions, ours")
    for name, value in {**ratios, **agreement}.items():
        print(f"  {name:32} {value:.3g}")
    print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.output:
        settings = {
            name: value for name, value in vars(arguments).items() if name not in ("output", "python", "checkout")
        }
        machine = {"cpu_count": os.cpu_count(), "processor": platform.processor() or platform.machine()}
        result = {
            "settings": settings,
            "frozen_layers": ours.frozen,
            "machine": machine,
            "versions": library_versions(),
        }
        result |= {"median_seconds": median, "ratios": ratios, "agreement": agreement, "all_seconds": times}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

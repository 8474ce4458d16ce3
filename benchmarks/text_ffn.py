"""What skipping the FFN for text tokens, too, costs and saves: it would make decoding faster.

    python benchmarks/text_ffn.py                 # the bundled demonstration model
    python benchmarks/text_ffn.py --model FOLDER  # another model, trained by training/train_demo_model.py

Operators are chosen by 40 samples for the FLOPs of N frozen layers, by their divergence over the answer. Then some
layers skip their FFN for text tokens, too: in the prompt, and in every step of decoding. Those come first whose FFN
for text, left out alone, has the lowest divergence over the answer. Shown are KL(base || changed) over the base's
answers on held-out scenes, right answers, and the share of a decoding step's FLOPs that is saved (decoder layers
only, at 64 text and 144 visual tokens). The last lines compare at equal KL: a milder choice of operators leaves room
for text FFNs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.selection import ACCURACY_SCENES, DEMO_MODEL, TEXT, VISUAL, Exam, draw, scored, summary
from shortv_export.base import flops_ratio
from shortv_export.base.definition import text_decoder, visual_tokens
from shortv_export.base.shapes import layer_shapes
from shortv_export.demo import scenes
from shortv_export.evaluation.summary import mean_interval
from shortv_export.measure.joint_divergence import JointDivergence
from shortv_export.options import Budget
from shortv_export.records import Frozen, library_versions
from shortv_export.selection.operators import select_operators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=DEMO_MODEL, help="folder of a model of the demonstration's scenes"
    )
    parser.add_argument("--draws", type=int, default=2, help="number of draws of scored samples")
    parser.add_argument("--samples", type=int, default=40, help="samples to score in each draw")
    parser.add_argument("--held-out", type=int, default=40, help="samples to measure KL on, the same for all draws")
    parser.add_argument("--scenes", type=int, default=80, help="scenes to ask about; 0 measures no accuracy")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 7], help="N, the mildest first")
    parser.add_argument(
        "--text-ffn", type=int, nargs="+", default=[1, 2, 4], help="numbers of layers without text FFN"
    )
    parser.add_argument("--json", type=Path, help="where to save the result")
    arguments = parser.parse_args()

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    shapes = layer_shapes(model.config.get_text_config().to_dict())
    share = decoding_share(model.config.get_text_config())
    held_out = JointDivergence(model, draw(processor, scenes.EVALUATION_SEEDS, arguments.held_out, 0), "answer")
    exam = Exam(model, processor, ACCURACY_SCENES[: arguments.scenes])
    rows: list[dict[str, Any]] = []

    def row(seed: int, count: int, frozen: Frozen, skipped: list[int], what: str) -> dict[str, Any]:
        with text_ffn_skipped(model, skipped):
            kl, error = held_out(frozen)
            found = {"kl": kl, "error": error, **exam(frozen)}
        cost = flops_ratio(shapes, **frozen.lists, text_tokens=TEXT, visual_tokens=VISUAL)
        saved = len(skipped) * share
        settings = {"draw": seed, "N": count, "frozen": frozen.lists, "text_ffn": skipped, "what": what}
        rows.append({**settings, "ratio": cost, "decoding_saved": saved, **found})
        print(
            f"draw {seed}, N = {count}, {what} {skipped}: decoding saves {saved:.1%}; {summary(rows[-1])}", flush=True
        )
        return rows[-1]

    row(0, 0, Frozen(), [], "base")
    for seed in range(arguments.draws):
        samples = draw(processor, scenes.CALIBRATION_SEEDS, arguments.samples, seed)
        scores = scored(model, samples)
        alone = JointDivergence(model, samples, "answer")
        divergences = []
        for layer in range(len(shapes)):
            with text_ffn_skipped(model, [layer]):
                divergences.append(alone(Frozen())[0])
        order = sorted(range(len(shapes)), key=lambda layer: divergences[layer])
        print(f"draw {seed}: KL of each layer's text FFN {[round(each, 5) for each in divergences]}")
        chosen = {}
        for count in arguments.layers:
            ratio = flops_ratio(shapes, range(count), TEXT, VISUAL)
            frozen = select_operators(scores, Budget(flops_ratio=ratio), shapes, VISUAL).frozen
            chosen[count] = row(seed, count, frozen, [], "operators"), frozen
            for number in arguments.text_ffn:
                difference(chosen[count][0], row(seed, count, frozen, sorted(order[:number]), "and text FFNs"))
        mild, most = arguments.layers[0], arguments.layers[-1]
        bound, frozen = chosen[most][0], chosen[mild][1]
        number = 0
        for number in range(len(order) + 1):
            with text_ffn_skipped(model, order[: number + 1]):
                if number == len(order) or held_out(frozen)[0] > bound["kl"]:
                    break
        print(f"draw {seed}: at the KL of N = {most}, N = {mild} leaves room for {number} text FFNs")
        difference(bound, row(seed, mild, frozen, sorted(order[:number]), f"at the KL of N = {most}, text FFNs"))
        if arguments.json:
            settings = {**vars(arguments), "json": None, "model": arguments.model.name}
            result = {"settings": settings, "versions": library_versions(), "decoding_share": share, "rows": rows}
            arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def difference(before: dict[str, Any], after: dict[str, Any]) -> None:
    if before.get("right"):
        points = 100 * (np.array(after["right"]) - np.array(before["right"]))
        low, high = mean_interval(points.tolist()) or (np.nan, np.nan)
        print(f"    {points.mean():+.1f} points [{low:.1f}, {high:.1f}]", flush=True)


def decoding_share(config: Any) -> float:
    """One layer's FFN as a share of all decoder layers' FLOPs in a decoding step; every layer has the same shape."""
    hidden = config.hidden_size
    keys = config.num_key_value_heads / config.num_attention_heads
    projections = 2 * hidden * hidden * (2 + 2 * keys)
    attention = 4 * hidden * (TEXT + VISUAL)
    ffn = 6 * hidden * config.intermediate_size
    return ffn / (projections + attention + ffn) / config.num_hidden_layers


@contextmanager
def text_ffn_skipped(model: Any, layers: list[int]) -> Iterator[None]:
    """The FFN of these layers adds nothing to text rows while the context lasts, also in decoding."""
    visual: list[torch.Tensor] = []

    def note(inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visual[:] = [visual_tokens(model.config, kwargs["input_ids"])]

    def skip(mlp: Any, args: tuple[Any, ...], update: torch.Tensor) -> torch.Tensor:
        return update * visual[0][..., None]

    hooks = [model.model.register_forward_pre_hook(note, with_kwargs=True)]
    hooks += [text_decoder(model).layers[layer].mlp.register_forward_hook(skip) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    main()

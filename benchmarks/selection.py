"""Which order of layers moves the model least: by Layer Contribution, by cosine distance, at random, or greedily.

    python benchmarks/selection.py                    # the bundled demonstration model, 3 draws of 40 samples
    python benchmarks/selection.py --held-out 400

Of each order the first N layers are frozen together, by definition, and KL(base || frozen) is measured on scenes that
no order has seen (in float32, at the last prompt position). `greedy` starts with no layer and adds the one with which
the frozen layers together have the lowest KL on the calibration samples, again and again; it is tried here and is no
method of `shortv-export`, as it takes a whole measurement for each candidate and is not clearly better than `lc`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from shortv_export import scenes
from shortv_export.calibration import encode, load_calibration
from shortv_export.contribution import layer_contributions
from shortv_export.joint import JointDivergence
from shortv_export.recipe import library_versions
from shortv_export.statistics import ranking

DEMO_MODEL = Path(scenes.__file__).with_name("demo_model")
COUNTS = (3, 5, 7, 9)
"""Layers frozen together."""
RANDOM_ORDERS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="of the calibration samples")
    parser.add_argument("--samples", type=int, default=40, help="to calibrate on, in each draw")
    parser.add_argument("--held-out", type=int, default=40, help="to measure on; the same for all draws")
    parser.add_argument("--json", type=Path, help="where to save the result")
    arguments = parser.parse_args()

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(DEMO_MODEL)
    held_out = JointDivergence(model, draw(processor, scenes.EVALUATION_SEEDS, arguments.held_out, 0))
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.draws):
        samples = draw(processor, scenes.CALIBRATION_SEEDS, arguments.samples, seed)
        for method, order in orders(model, samples).items():
            for count in COUNTS:
                kl, error = held_out(sorted(order[:count]))
                rows.append(
                    {"draw": seed, "method": method, "order": order, "num_frozen": count, "kl": kl, "error": error}
                )
    print(f"| KL, {arguments.held_out} held-out samples | " + " | ".join(f"N = {count}" for count in COUNTS) + " |")
    print("|---" * (1 + len(COUNTS)) + "|")
    for seed in range(arguments.draws):
        for method in dict.fromkeys(row["method"] for row in rows):
            cells = [row for row in rows if (row["draw"], row["method"]) == (seed, method)]
            values = " | ".join(f"{row['kl']:.4f} ± {row['error']:.4f}" for row in cells)
            print(f"| draw {seed}, {method} | {values} |")
    if arguments.json:
        result = {"settings": vars(arguments) | {"json": None}, "versions": library_versions(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def draw(processor: Any, seeds: range, count: int, seed: int) -> list[Any]:
    """Encoded questions about scenes, a part of the seeds for each draw."""
    with tempfile.TemporaryDirectory() as name:
        folder = scenes.write_folder(Path(name), seeds[seed * count : (seed + 1) * count])
        samples = load_calibration(folder, num_samples=count, seed=seed).samples
    return [encode(processor, [sample]) for sample in samples]


def orders(model: Any, samples: list[Any]) -> dict[str, list[int]]:
    """Layer numbers, those to freeze first in front, by each method."""
    measured = layer_contributions(model, samples)
    layers = measured.visual.shape[1]
    found = {
        "lc": ranking(tuple(measured.visual.mean(0).tolist())),
        "cosine": ranking(tuple(measured.visual_cosine_distance.mean(0).tolist())),
    }
    for seed in range(RANDOM_ORDERS):
        found[f"random {seed}"] = random.Random(seed).sample(range(layers), layers)
    return found | {"greedy": greedy_order(JointDivergence(model, samples), layers, max(COUNTS))}


def greedy_order(divergence: JointDivergence, layers: int, count: int) -> list[int]:
    """Measures again after each choice."""
    chosen: list[int] = []
    while len(chosen) < count:
        values = {layer: divergence(sorted([*chosen, layer]))[0] for layer in range(layers) if layer not in chosen}
        chosen.append(min(values, key=lambda layer: (values[layer], -layer)))
    return chosen


if __name__ == "__main__":
    main()

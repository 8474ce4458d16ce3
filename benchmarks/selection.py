"""Which order of freezing layers changes the model least: by Layer Contribution, by cosine, at random or greedily.

    python benchmarks/selection.py                    # the bundled demonstration model, 3 draws of 40 samples
    python benchmarks/selection.py --held-out 400 --scenes 80

The first N layers of each order are frozen together by the definition, and KL(base || frozen) is measured on held-out
scenes (in float32, at the last prompt position). `greedy` adds one layer after another, each time the one that gives
the lowest KL on the scored samples. It is not a method of `shortv-export`: it needs a measurement for every candidate
and is not clearly better than `lc`. With `--scenes`, the models also answer all questions about that many other
scenes, with greedy decoding; an answer counts as right if it matches exactly.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from shortv_export.base.definition import frozen_by_definition, text_decoder, visual_tokens
from shortv_export.demo import scenes
from shortv_export.measure.joint_divergence import JointDivergence
from shortv_export.measure.layer_contribution import layer_contributions
from shortv_export.options import Samples
from shortv_export.records import library_versions
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import draw_samples
from shortv_export.samples.encode import encode_samples
from shortv_export.selection.stability import ranking

DEMO_MODEL = Path(scenes.__file__).with_name("model")
COUNTS = (3, 5, 7, 9)  # layers frozen together
RANDOM_ORDERS = 8
ACCURACY_SCENES = scenes.EVALUATION_SEEDS[500_000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="number of draws of scored samples")
    parser.add_argument("--samples", type=int, default=40, help="samples to score in each draw")
    parser.add_argument("--held-out", type=int, default=40, help="samples to measure KL on, the same for all draws")
    parser.add_argument("--scenes", type=int, default=0, help="scenes to ask about; 0 measures no accuracy")
    parser.add_argument("--json", type=Path, help="where to save the result")
    arguments = parser.parse_args()

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(DEMO_MODEL)
    held_out = JointDivergence(model, draw(processor, scenes.EVALUATION_SEEDS, arguments.held_out, 0))
    exam = Exam(model, processor, ACCURACY_SCENES[: arguments.scenes])
    rows: list[dict[str, Any]] = [{"draw": 0, "method": "base", "order": [], "num_frozen": 0, **exam([])}]
    for seed in range(arguments.draws):
        samples = draw(processor, scenes.CALIBRATION_SEEDS, arguments.samples, seed)
        for method, order in orders(model, samples, randomly=seed == 0).items():
            for count in COUNTS:
                kl, error = held_out(sorted(order[:count]))
                row = {"draw": seed, "method": method, "order": order, "num_frozen": count}
                rows.append({**row, "kl": kl, "error": error, **exam(sorted(order[:count]))})
    table(f"KL, {arguments.held_out} held-out samples", rows, lambda row: f"{row['kl']:.4f} ± {row['error']:.4f}")
    if arguments.scenes:
        base = rows[0]
        print(f"\nWithout frozen layers {base['right']:.1%} of {base['questions']} questions: {base['tasks']}\n")
        table("right", rows, lambda row: f"{row['right']:.1%}")
        for row in rows:
            if row["method"] == "lc" and row["draw"] == 0:
                print(f"\nlc, {row['num_frozen']} frozen {sorted(row['order'][: row['num_frozen']])}: {row['tasks']}")
    if arguments.json:
        result = {"settings": vars(arguments) | {"json": None}, "versions": library_versions(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(title: str, rows: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> None:
    print(f"| {title} | " + " | ".join(f"N = {count}" for count in COUNTS) + " |")
    print("|---" * (1 + len(COUNTS)) + "|")
    for seed, method in dict.fromkeys((row["draw"], row["method"]) for row in rows[1:]):
        cells = [cell(row) for row in rows[1:] if (row["draw"], row["method"]) == (seed, method)]
        print(f"| draw {seed}, {method} | {' | '.join(cells)} |")


class Exam:
    """Measures the share of questions that a model with frozen layers answers exactly right, by task."""

    def __init__(self, model: Any, processor: Any, seeds: range) -> None:
        self.model, self.processor = model, processor
        self.batches: list[tuple[Any, list[scenes.Question]]] = []
        for scene in map(scenes.make_scene, seeds):
            questions, image = scenes.ask(scene), Image.fromarray(scenes.draw(scene))
            samples = [Sample((image,), question.text, question.answer, "") for question in questions]
            self.batches.append((encode_samples(processor, samples), questions))

    def __call__(self, frozen_layers: list[int]) -> dict[str, Any]:
        right: dict[str, list[bool]] = {task: [] for task in scenes.TASKS}
        for inputs, questions in self.batches:
            visual = visual_tokens(self.model.config, inputs["input_ids"])
            with torch.inference_mode(), frozen_by_definition(text_decoder(self.model).layers, frozen_layers, visual):
                tokens = self.model.generate(**inputs, max_new_tokens=40, do_sample=False)
            said = self.processor.batch_decode(tokens[:, visual.shape[1] :], skip_special_tokens=True)
            for question, answer in zip(questions, said, strict=True):
                right[question.task].append(answer == question.answer)
        answers = [good for task in right.values() for good in task]
        if not answers:
            return {}
        shares = {task: round(sum(found) / len(found), 3) for task, found in right.items()}
        return {"questions": len(answers), "right": sum(answers) / len(answers), "tasks": shares}


def draw(processor: Any, seeds: range, count: int, seed: int) -> list[Any]:
    """Encoded questions about scenes; each draw uses other seeds."""
    with tempfile.TemporaryDirectory() as name:
        folder = scenes.write_folder(Path(name), seeds[seed * count : (seed + 1) * count])
        samples = draw_samples(Samples(str(folder), num_samples=count, seed=seed)).samples
    return [encode_samples(processor, [sample]) for sample in samples]


def orders(model: Any, samples: list[Any], *, randomly: bool) -> dict[str, list[int]]:
    """The order in which each method freezes the layers."""
    measured = layer_contributions(model, samples)
    layers = measured.visual.shape[1]
    found = {
        "lc": ranking(tuple(measured.visual.mean(0).tolist())),
        "cosine": ranking(tuple(measured.visual_cosine_distance.mean(0).tolist())),
    }
    for seed in range(RANDOM_ORDERS if randomly else 0):
        found[f"random {seed}"] = random.Random(seed).sample(range(layers), layers)
    return found | {"greedy": greedy_order(JointDivergence(model, samples), layers, max(COUNTS))}


def greedy_order(divergence: JointDivergence, layers: int, count: int) -> list[int]:
    """Adds the layer with the lowest KL, `count` times."""
    chosen: list[int] = []
    while len(chosen) < count:
        values = {layer: divergence(sorted([*chosen, layer]))[0] for layer in range(layers) if layer not in chosen}
        chosen.append(min(values, key=lambda layer: (values[layer], -layer)))
    return chosen


if __name__ == "__main__":
    main()

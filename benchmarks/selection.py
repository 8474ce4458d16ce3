"""What freezing costs at the same FLOPs: whole layers or single operators, chosen in several ways.

    python benchmarks/selection.py                    # the bundled demonstration model, 3 draws of 40 samples
    python benchmarks/selection.py --scenes 80        # and its answers to all questions about 80 other scenes
    python benchmarks/selection.py --model FOLDER     # another model, trained by training/train_demo_model.py

Samples are drawn by turns from all tasks. For the FLOPs of N frozen layers each, these are compared: the layers with
the lowest Layer Contribution at the first token of the answer (the paper) or over the whole answer, by cosine, and at
random; and single operators, by their divergence per FLOP saved at the first token or over the whole answer. FastV,
which needs no scores, drops as many visual tokens after its second layer as it takes. What a method chooses is frozen
by the definition, in float32. KL(base || frozen) is measured on held-out scenes, over the tokens of the base's own
answers. An answer counts as right if it matches exactly; intervals are 95 % intervals from a bootstrap over scenes.
FLOPs are those of a prompt of 64 text and 144 visual tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.prefill import remote_code
from shortv_export.base import LayerShape, flops_ratio
from shortv_export.base.definition import frozen_by_definition, text_decoder, visual_tokens
from shortv_export.base.shapes import layer_shapes
from shortv_export.demo import scenes
from shortv_export.evaluation.baselines import fastv
from shortv_export.evaluation.changes import Change
from shortv_export.evaluation.summary import mean_interval
from shortv_export.measure.joint_divergence import JointDivergence
from shortv_export.measure.layer_contribution import layer_contributions
from shortv_export.options import Budget, Samples
from shortv_export.records import Frozen, Scores, library_versions
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import draw_samples
from shortv_export.samples.encode import encode_samples
from shortv_export.selection.operators import select_operators
from shortv_export.selection.stability import ranking

DEMO_MODEL = Path(scenes.__file__).with_name("model")
TEXT, VISUAL = 64, 144  # tokens of the prompt whose FLOPs are counted
ACCURACY_SCENES = scenes.EVALUATION_SEEDS[500_000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=DEMO_MODEL, help="folder of a model of the demonstration's scenes"
    )
    parser.add_argument("--draws", type=int, default=3, help="number of draws of scored samples")
    parser.add_argument("--samples", type=int, default=40, help="samples to score in each draw")
    parser.add_argument("--held-out", type=int, default=40, help="samples to measure KL on, the same for all draws")
    parser.add_argument("--scenes", type=int, default=0, help="scenes to ask about; 0 measures no accuracy")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 7, 9], help="N: frozen layers to compare with")
    parser.add_argument("--random", type=int, default=2, help="number of random orders of layers, in the first draw")
    parser.add_argument(
        "--at-random", action="store_true", help="draw scored samples at random, not by turns of tasks"
    )
    parser.add_argument("--json", type=Path, help="where to save the result")
    arguments = parser.parse_args()

    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    shapes = layer_shapes(model.config.get_text_config().to_dict())
    held_out = JointDivergence(model, draw(processor, scenes.EVALUATION_SEEDS, arguments.held_out, 0), "answer")
    exam = Exam(model, processor, ACCURACY_SCENES[: arguments.scenes])
    measured: dict[Frozen, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []

    def row(seed: int, method: str, count: int, frozen: Frozen) -> None:
        if frozen not in measured:
            kl, error = held_out(frozen)
            measured[frozen] = {"kl": kl, "error": error, **exam(frozen)}
        ratio = flops_ratio(shapes, **frozen.lists, text_tokens=TEXT, visual_tokens=VISUAL)
        rows.append(
            {"draw": seed, "method": method, "N": count, "frozen": frozen.lists, "ratio": ratio, **measured[frozen]}
        )
        print(f"draw {seed}, N = {count}, {method}: {frozen.describe(len(shapes))}; {summary(rows[-1])}", flush=True)

    row(0, "base", 0, Frozen())
    for count in arguments.layers if arguments.scenes else ():
        ratio = flops_ratio(shapes, range(count), TEXT, VISUAL)
        change, cost = fastv_within(shapes, ratio)
        measure = {"kl": math.nan, "error": math.nan, **exam.pruned(arguments.model, change)}
        rows.append({"draw": 0, "method": "FastV", "N": count, "frozen": change.name, "ratio": cost, **measure})
        print(f"N = {count}, {change.name}: {summary(rows[-1])}", flush=True)
    for seed in range(arguments.draws):
        samples = draw(processor, scenes.CALIBRATION_SEEDS, arguments.samples, seed, stratify=not arguments.at_random)
        scores = scored(model, samples)
        for count in arguments.layers:
            for method, frozen in choices(scores, shapes, count, 0 if seed else arguments.random).items():
                row(seed, method, count, frozen)
        if arguments.json:  # after each draw, so that an interrupted run leaves what it has
            settings = {**vars(arguments), "json": None, "model": arguments.model.name}
            result = {"settings": settings, "versions": library_versions(), "rows": rows}
            arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        report(rows, arguments.layers)


def choices(scores: Scores, shapes: tuple[LayerShape, ...], count: int, random_orders: int) -> dict[str, Frozen]:
    """What each method freezes at the FLOPs of `count` frozen layers."""
    orders = {
        "layers, first token": ranking(scores.visual),
        "layers, answer": ranking(means(scores.operators("answer")["visual"])),
        "layers, cosine": ranking(scores.visual_cosine_distance),
    }
    for seed in range(random_orders):
        orders[f"layers, random {seed}"] = random.Random(seed).sample(range(len(shapes)), len(shapes))
    found = {name: Frozen(tuple(sorted(order[:count]))) for name, order in orders.items()}
    ratio = flops_ratio(shapes, **found["layers, first token"].lists, text_tokens=TEXT, visual_tokens=VISUAL)
    first = {name: scores.ablations[name] for name in ("attention", "ffn")}
    for name, by in (
        ("first token", Scores(**{**vars(scores), "ablations": first})),
        ("answer", scores),
    ):
        found[f"operators, {name}"] = select_operators(by, Budget(flops_ratio=ratio), shapes, VISUAL).frozen
    return found


def fastv_within(shapes: tuple[LayerShape, ...], ratio: float) -> tuple[Change, float]:
    """FastV with as little pruning as takes no more FLOPs than this share; and the share that it takes."""
    for step in range(1001):  # of 0.1 %, the precision that its name shows
        change = fastv(step / 1000)
        cost = change.flops_ratio(shapes, TEXT, VISUAL)
        if cost is not None and cost <= ratio:
            return change, cost
    raise SystemExit(f"FastV does not reach {ratio:.3f} of the FLOPs.")


def scored(model: Any, samples: list[Any]) -> Scores:
    found = layer_contributions(model, samples)
    rows: dict[str, Any] = {name: tuple(tuple(sample[name].tolist()) for sample in found) for name in found[0]}
    return Scores(
        visual=means(rows["visual"]),
        text=(),
        visual_standard_error=(0.0,) * len(rows["visual"][0]),
        num_samples=len(samples),
        visual_samples=rows["visual"],
        visual_cosine_distance=means(rows["visual_cosine_distance"]),
        ablations={name: each for name, each in rows.items() if name in ("attention", "ffn") or "answer" in name},  # type: ignore[misc]
        tokens=tuple((int(text), int(visual), int(answer)) for text, visual, answer in rows["tokens"]),
    )


def means(rows: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    return tuple(np.array(rows).mean(axis=0).tolist())


def summary(row: Mapping[str, Any]) -> str:
    right = f", {np.mean(row['right']):.1%} right, {row['tasks']}" if row.get("right") else ""
    return f"FLOPs {row['ratio']:.3f}, KL {row['kl']:.4f} ± {row['error']:.4f}{right}"


def report(rows: list[dict[str, Any]], counts: list[int]) -> None:
    """Means over the draws; and how much more single operators get right, scene by scene."""
    print("\n| method | " + " | ".join(f"N = {count}: KL, right" for count in counts) + " |")
    print("|---" * (1 + len(counts)) + "|")
    for method in dict.fromkeys(row["method"] for row in rows[1:]):
        cells = []
        for count in counts:
            found = [row for row in rows if (row["method"], row["N"]) == (method, count)]
            right = f", {np.mean([row['right'] for row in found]):.1%}" if found[0].get("right") else ""
            cells.append(f"{np.mean([row['kl'] for row in found]):.4f}{right}")
        print(f"| {method} | {' | '.join(cells)} |")
    if not rows[0].get("right"):
        return
    print(f"\nThe base: {summary(rows[0])}")
    for reference in ("layers, first token", "layers, answer"):
        for count in counts:
            by_method = {
                method: np.mean([row["right"] for row in rows if (row["method"], row["N"]) == (method, count)], axis=0)
                for method in ("operators, answer", reference)
            }
            difference = 100 * (by_method["operators, answer"] - by_method[reference])
            low, high = mean_interval(difference.tolist()) or (np.nan, np.nan)
            interval = f"{difference.mean():+.1f} points [{low:.1f}, {high:.1f}]"
            print(f"N = {count}: operators (answer) - {reference}: {interval}")


class Exam:
    """Measures the share of questions that a model with frozen layers answers exactly right, by task."""

    def __init__(self, model: Any, processor: Any, seeds: range) -> None:
        self.model, self.processor = model, processor
        self.scenes: list[tuple[Any, list[Any], list[scenes.Question]]] = []
        for scene in map(scenes.make_scene, seeds):
            questions, image = scenes.ask(scene), Image.fromarray(scenes.draw(scene))
            samples = [Sample((image,), question.text, question.answer, "") for question in questions]
            alone = [encode_samples(processor, [sample]) for sample in samples]
            self.scenes.append((encode_samples(processor, samples), alone, questions))

    def __call__(self, frozen: Frozen) -> dict[str, Any]:
        """The share of right answers for each scene and for each task."""

        @contextmanager
        def apply(model: Any, inputs: Any) -> Iterator[None]:
            visual = visual_tokens(model.config, inputs["input_ids"])
            with frozen_by_definition(text_decoder(model).layers, frozen=visual, **frozen.lists):
                yield

        return self.grade(self.model, apply)

    def pruned(self, folder: Path, change: Change) -> dict[str, Any]:
        """The same for FastV, which runs on the published code, one question at a time."""
        configuration, modeling = remote_code()
        config = configuration.ShortVLlavaConfig.from_pretrained(folder, frozen_layers=[])
        published = modeling.ShortVLlavaForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=torch.float32
        )
        return self.grade(published.eval(), change.apply, one_by_one=True)

    def grade(self, model: Any, apply: Callable[..., Any], *, one_by_one: bool = False) -> dict[str, Any]:
        """The share of right answers of a model that a context changes."""
        right: dict[str, list[bool]] = {task: [] for task in scenes.TASKS}
        by_scene = []
        for batch, alone, questions in self.scenes:
            said = []
            for inputs in alone if one_by_one else [batch]:
                with torch.inference_mode(), apply(model, inputs):
                    tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
                answers = tokens[:, inputs["input_ids"].shape[1] :]
                said += self.processor.batch_decode(answers, skip_special_tokens=True)
            found = [answer == question.answer for question, answer in zip(questions, said, strict=True)]
            for question, good in zip(questions, found, strict=True):
                right[question.task].append(good)
            by_scene.append(sum(found) / len(found))
        if not by_scene:
            return {}
        tasks = {task: round(sum(found) / len(found), 3) for task, found in right.items()}
        return {"questions": sum(map(len, right.values())), "right": by_scene, "tasks": tasks}


def draw(processor: Any, seeds: range, count: int, seed: int, *, stratify: bool = True) -> list[Any]:
    """Encoded questions about scenes; each draw uses other seeds."""
    with tempfile.TemporaryDirectory() as name:
        folder = scenes.write_folder(Path(name), seeds[seed * count : (seed + 1) * count])
        samples = draw_samples(Samples(str(folder), num_samples=count, seed=seed), stratify=stratify).samples
    return [encode_samples(processor, [sample]) for sample in samples]


if __name__ == "__main__":
    main()

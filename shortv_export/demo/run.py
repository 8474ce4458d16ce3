"""The demo: converts a small trained model and publishes it to a Hub on this machine.

The model is a LLaVA that answers questions about drawn scenes (`model/README.md`). All numbers are measured.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import ShortVError
from ..files import check_writable, write_text
from ..options import Budget, Choice, Comparison, Help, Placement, Questions, Samples, Scoring

if TYPE_CHECKING:
    from ..loopback import LoopbackHub
    from ..publish import Push
    from ..records import Evaluation, Frozen, Scores

logger = logging.getLogger(__name__)

BASE_ID = "loopback/scenes-llava"
REPO_ID = "loopback/scenes-llava-shortv"
CALIBRATION_SAMPLES = 40
COMPARED_SAMPLES = 16
HELD_OUT_SAMPLES = 48
FLOPS_RATIO = 0.66  # of 7 frozen layers
_SCENES = 8  # enough for that many questions
_PLACEMENT = Placement(dtype="float32")  # in bfloat16, many CPUs are four times slower
_MARKER = ".shortv-demo"
Table = tuple[str, list[tuple[str, ...]]]


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        card: the card that was published.
        tables: the measurements and steps: a title and rows each.
        evaluation: of the package.
        push: what was published.
        steps: name, result and time of each step.
    """

    card: Path
    tables: list[Table]
    evaluation: Evaluation
    push: Push
    steps: list[tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "card": str(self.card),
            "package": str(self.card.parent),
            "steps": [dict(zip(("step", "result", "time"), row, strict=True)) for row in self.steps],
            "evaluation": self.evaluation.to_dict(),
            "push": asdict(self.push),
        }


class _Steps:
    """Announces each step; keeps its name, result and time."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def begin(self, name: str, description: str) -> None:
        self.name, self.started = name, time.perf_counter()
        logger.info("")
        logger.info("%d. %s: %s", len(self.rows) + 1, name, description)

    def done(self, result: str) -> None:
        self.rows.append((self.name, result, f"{time.perf_counter() - self.started:.1f} s"))
        logger.info("-> %s", result)


def run_demo(
    *,
    output: Annotated[Path, Help("Folder for everything the demo makes.", short="-o")] = Path("shortv-demo"),
    open: Annotated[bool, Help("Open the card at the end, if run in a terminal.")] = True,
) -> Demo:
    """Every step on a small trained model, with a Hub on this machine; no account, no download.

    Args:
        output: folder for everything; that of an earlier demo is replaced.
        open: for the command line.

    Raises:
        ShortVError: the folder holds something else, or a step failed.
    """
    if "huggingface_hub" in sys.modules:
        raise ShortVError(
            "the demo needs a process of its own (the Hub's address is read at import); run it as a command."
        )
    from ..loopback import LoopbackHub

    _prepare(output)
    logger.info("A small model is converted and published on this machine, in %s; no account, no download.", output)
    with LoopbackHub() as hub:
        # Set before huggingface_hub is imported, since it reads them once. The user's cache stays as it is.
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        os.environ.update(hub.env(), **quiet, HF_HOME=str((output / "hf-home").resolve()))
        demo = _run(hub, output)
        if hub.errors:
            raise ShortVError(f"the Hub saw a protocol error: {hub.errors[0]}")
    return demo


def _run(hub: LoopbackHub, output: Path) -> Demo:
    """Runs every step."""
    import torch

    from .. import pipeline
    from ..evaluation import tables
    from . import scenes

    torch.set_num_threads(1)  # for matrices this small, more threads are slower
    steps = _Steps()

    steps.begin("base model", "a LLaVA that was trained on drawn scenes, on a Hub on this machine")
    hub.create_repo(BASE_ID, files={path.name: path for path in Path(__file__).with_name("model").iterdir()})
    calibration = scenes.write_folder(output / "calibration", scenes.CALIBRATION_SEEDS[:_SCENES])
    held_out = scenes.write_folder(output / "held-out", scenes.EVALUATION_SEEDS[:_SCENES])
    steps.done(f"{BASE_ID}; {_SCENES} new scenes to choose layers by, {_SCENES} to evaluate on")

    steps.begin("score", "how much does the output change if visual tokens skip a layer, its attention or its FFN?")
    samples = Samples(str(calibration), CALIBRATION_SAMPLES)
    scoring = Scoring(text_contribution=True)
    file = output / "scores.json"
    scores = pipeline.score(BASE_ID, output=file, samples=samples, scoring=scoring, placement=_PLACEMENT)
    *_, second, lowest = sorted(range(len(scores.visual)), key=scores.visual.__getitem__, reverse=True)
    steps.done(f"{scores.num_samples} samples; least in layers {lowest} and {second}")

    steps.begin("package", "freeze what costs least for the FLOPs it saves; is that better than whole layers?")
    folder = output / "package"
    recipe = pipeline.package(
        BASE_ID,
        folder,
        choice=Choice(scores=file),
        budget=Budget(flops_ratio=FLOPS_RATIO),
        samples=replace(samples, num_samples=COMPARED_SAMPLES),
        placement=_PLACEMENT,
    ).recipe
    text, visual, ratio = (recipe.cost[name] for name in ("text_tokens", "visual_tokens", "flops_ratio"))
    frozen = recipe.frozen.describe(recipe.num_layers)
    steps.done(f"{frozen}; a prompt of {text} text and {visual} visual tokens takes {ratio:.0%} of the base's FLOPs")

    steps.begin("verify", "does the package compute what its recipe says? A fresh process compares")
    verification = pipeline.verify(str(folder))
    verification.raise_if_failed()
    steps.done(verification.summary)

    steps.begin("evaluate", "accuracy and speed against the base and other methods")
    evaluation = pipeline.evaluate(
        str(folder),
        output=output / "evaluation.json",
        samples=Samples(str(held_out), HELD_OUT_SAMPLES),
        questions=Questions(group_by="task"),
        comparison=Comparison(baselines=True),
        placement=_PLACEMENT,
        update_card=True,
    )
    steps.done(_results(evaluation))
    for note in evaluation.notes:
        logger.info(note)

    steps.begin("publish", "to the Hub on this machine")
    push: Any = pipeline.push(str(folder), REPO_ID)
    steps.done(f"{REPO_ID}: one commit, tagged {push.tag}")

    steps.begin("load", "from the Hub, in a process that has transformers but not shortv-export")
    sample = json.loads((held_out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
    question = sample["question"]
    loaded = _load(hub, push.tag, held_out / sample["file_name"], question, output)
    skipped = loaded["report"]["skipped_updates"] / loaded["report"]["total_updates"]
    steps.done(
        f"{loaded['model']} skips {skipped:.0%} of the token updates; "
        f"{question!r} -> {loaded['answer']!r} (right answer: {sample['answer']!r})"
    )
    contributions = ("KL divergence, in nats, without...", _contributions(scores, recipe.frozen))
    shown = [contributions, *tables(evaluation), ("Steps of the demo", steps.rows)]
    return Demo(folder / "README.md", shown, evaluation, push, steps.rows)


def _results(evaluation: Evaluation) -> str:
    """Accuracy and speed in one line."""
    speed, accuracy = evaluation.chosen.speed[0], evaluation.chosen.accuracy
    faster = "the machine was too noisy to measure speed"
    if not speed.too_noisy:
        faster = f"prefill {speed.speed_up:.2f}x as fast ({speed.limit:.2f}x if time followed FLOPs)"
    if accuracy is None:
        return faster
    right = f"{accuracy.base.mean:.1%} -> {accuracy.changed.mean:.1%}"
    return f"accuracy {right} on {accuracy.num_samples} held-out questions; {faster}"


def _contributions(scores: Scores, frozen: Frozen) -> list[tuple[str, ...]]:
    """What each layer and operator contributes to the visual tokens, over the answers; and what visual tokens skip."""
    found = scores.operators("answer")
    means = [[fmean(values) for values in zip(*found[name], strict=True)] for name in ("visual", "attention", "ffn")]
    lines: list[tuple[str, ...]] = [("layer", "both", "attention", "FFN", "skipped")]
    names = {"attention": "attention", "ffn": "FFN"}
    for layer, values in enumerate(zip(*means, strict=True)):
        skipped = [name for operator, name in names.items() if (operator, layer) in frozen.parts]
        lines.append((str(layer), *(f"{value:.2g}" for value in values), " and ".join(skipped)))
    return lines


def _prepare(output: Path) -> None:
    check_writable(output, folder=True)
    if output.exists():
        if not (output / _MARKER).is_file():
            raise ShortVError(f"{output} exists and is not an earlier demo's; choose another `output`.")
        shutil.rmtree(output, ignore_errors=True)
    write_text(output / _MARKER, "")


def _load(hub: LoopbackHub, revision: str, image: Path, question: str, output: Path) -> dict[str, Any]:
    """Loads the published repository in a fresh process without this package, and asks about an image."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environment |= {**hub.env(), "HF_HOME": str((output / "client-hf-home").resolve())}
    client = Path(__file__).with_name("client.py")
    command = [sys.executable, "-I", str(client), REPO_ID, revision, str(image), question]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if result.returncode:
        raise ShortVError(f"loading {REPO_ID} in a fresh process failed: {result.stderr.strip().splitlines()[-1]}")
    return json.loads(result.stdout.strip().splitlines()[-1])

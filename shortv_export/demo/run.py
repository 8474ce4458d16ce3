"""`shortv-export demo`: the whole way on one machine, without an account and without a download.

The base is the bundled demonstration model, a small LLaVA that has learnt to answer questions about one kind of drawn
scenes (`model/README.md`). What freezing does to it is measured, not played.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import ShortVError
from ..options import Comparison, Help, Questions, Samples

if TYPE_CHECKING:
    from ..loopback import LoopbackHub
    from ..records import Evaluation, Scores

logger = logging.getLogger(__name__)

BASE_ID = "loopback/scenes-llava"
REPO_ID = "loopback/scenes-llava-shortv"
CALIBRATION_SAMPLES = 40
HELD_OUT_SAMPLES = 48
# Enough scenes for that many questions; both draws are seeded.
_SCENES = 8
_MARKER = ".shortv-demo"


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        card: the published card.
        tables: of what was measured, and of the steps: a title and rows each.
    """

    card: Path
    tables: list[tuple[str, list[tuple[str, ...]]]]


class _Steps:
    """The steps so far, each with its result and its time."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.started = time.perf_counter()

    def done(self, name: str, result: str) -> None:
        self.rows.append((name, result, f"{time.perf_counter() - self.started:.1f} s"))
        logger.info("%s: %s", name, result)
        self.started = time.perf_counter()


def run_demo(
    *,
    output: Annotated[Path, Help("Folder for everything the demo makes.")] = Path("shortv-demo"),
    open: Annotated[bool, Help("At a terminal, open the card in the end.")] = True,
) -> Demo:
    """The whole way on a small trained model, with a Hub on this machine; no account, no download.

    Args:
        output: folder for everything; an earlier demo's is replaced.
        open: for the command line.

    Raises:
        ShortVError: the folder is not an earlier demo's, or a step failed.
    """
    if "huggingface_hub" in sys.modules:
        raise ShortVError(
            "the demo needs a process of its own (the Hub's address is read at import); run it as a command."
        )
    from ..loopback import LoopbackHub

    _prepare(output)
    with LoopbackHub() as hub:
        # Before huggingface_hub is imported: it reads its settings once. Nothing of the user's cache is touched.
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        os.environ.update(hub.env(), **quiet, HF_HOME=str((output / "hf-home").resolve()))
        tables = _run(hub, output, _Steps())
        if hub.errors:
            raise ShortVError(f"the Hub saw a protocol error: {hub.errors[0]}")
    return Demo(output / "package" / "README.md", tables)


def _run(hub: LoopbackHub, output: Path, steps: _Steps) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Scores, packages, verifies, evaluates and publishes the model, and loads it as a stranger would."""
    import torch

    from .. import pipeline
    from ..evaluation import tables
    from ..options import Choice
    from . import scenes

    torch.set_num_threads(1)  # on matrices this small, threads only wait for each other

    base = Path(__file__).with_name("model")
    hub.create_repo(BASE_ID, files={path.name: path for path in base.iterdir()})
    scored_on = scenes.write_folder(output / "calibration", scenes.CALIBRATION_SEEDS[:_SCENES])
    held_out = scenes.write_folder(output / "held-out", scenes.EVALUATION_SEEDS[:_SCENES])
    steps.done("base model", f"{BASE_ID}: a small LLaVA that was trained on drawn scenes; {2 * _SCENES} new scenes")

    samples = Samples(str(scored_on), CALIBRATION_SAMPLES)
    scores = pipeline.score(BASE_ID, output=output / "scores.json", samples=samples)
    lowest = min(range(len(scores.visual)), key=scores.visual.__getitem__)
    steps.done(
        "score", f"{scores.num_samples} samples; layer {lowest} contributes least ({scores.visual[lowest]:.2g})"
    )

    folder = output / "package"
    recipe = pipeline.package(BASE_ID, folder, choice=Choice(scores=output / "scores.json")).recipe
    ratio = recipe.cost["flops_ratio"]
    steps.done("package", f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen; FLOPs ratio {ratio:.3f}")

    verification = pipeline.verify(str(folder))
    verification.raise_if_failed()
    steps.done("verify", f"{verification.summary} in a fresh process")

    evaluation = pipeline.evaluate(
        str(folder),
        output=output / "evaluation.json",
        samples=Samples(str(held_out), HELD_OUT_SAMPLES),
        questions=Questions(group_by="task"),
        comparison=Comparison(baselines=True),
        update_card=True,
    )
    steps.done("evaluate", _reached(evaluation))
    for note in evaluation.notes:
        logger.info(note)

    push: Any = pipeline.push(str(folder), REPO_ID)
    steps.done("publish", f"{push.url}: one commit, tagged {push.tag}")

    sample = json.loads((held_out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
    image, question = held_out / sample["file_name"], sample["question"]
    answer = _load_as_a_stranger(hub, push.tag, image, question, output)
    skipped = answer["report"]["skipped_updates"] / answer["report"]["total_updates"]
    steps.done("load", f"{answer['model']} by AutoModel.from_pretrained; {skipped:.0%} of the token updates skipped")
    steps.done("answer", f"{question!r} -> {answer['answer']!r}; it is {sample['answer']!r}")
    contributions = ("Layer Contribution, in nats", _contributions(scores, recipe.frozen_layers))
    return [contributions, *tables(evaluation), ("shortv-export demo", steps.rows)]


def _reached(evaluation: Evaluation) -> str:
    """Accuracy and speed in one line."""
    shortv = evaluation.chosen
    speed, accuracy = shortv.speed[0], shortv.accuracy
    reached = f"prefill {speed.speed_up:.2f}x of the {speed.limit:.2f}x that its FLOPs allow"
    if accuracy is None:
        return reached
    right = f"{accuracy.base.mean:.1%} -> {accuracy.changed.mean:.1%} right"
    return f"{right} on {accuracy.num_samples} held-out questions; {reached}"


def _contributions(scores: Scores, frozen_layers: Sequence[int]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("layer", "of visual tokens", "of text tokens", "")]
    for layer, (visual, text) in enumerate(zip(scores.visual, scores.text, strict=True)):
        lines.append((str(layer), f"{visual:.2g}", f"{text:.2g}", "frozen" if layer in frozen_layers else ""))
    return lines


def _prepare(output: Path) -> None:
    if output.exists():
        if not (output / _MARKER).is_file():
            raise ShortVError(f"{output} exists and is not an earlier demo's; choose another `output`.")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / _MARKER).touch()


def _load_as_a_stranger(hub: LoopbackHub, revision: str, image: Path, question: str, output: Path) -> dict:
    """Loads the published repository in a fresh process that cannot import this package, and asks about an image."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environment |= {**hub.env(), "HF_HOME": str((output / "stranger-hf-home").resolve())}
    client = Path(__file__).with_name("client.py")
    result = subprocess.run(
        [sys.executable, "-I", str(client), REPO_ID, revision, str(image), question],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.returncode:
        raise ShortVError(f"loading {REPO_ID} in a fresh process failed: {result.stderr.strip().splitlines()[-1]}")
    return json.loads(result.stdout.strip().splitlines()[-1])

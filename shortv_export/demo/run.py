"""`shortv-export demo`: the whole way on one machine, without an account and without a download.

The base is the bundled demonstration model, a small LLaVA that has learnt to answer questions about one kind of drawn
scenes (`model/README.md`). What freezing does to it is measured, not played.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ShortVError
from ..evaluation import tables
from ..loopback.hub import LoopbackHub
from ..records import Scores
from . import scenes

BASE_ID = "loopback/scenes-llava"
REPO_ID = "loopback/scenes-llava-shortv"
CALIBRATION_SAMPLES = 40
HELD_OUT_SAMPLES = 48
# Enough scenes for that many questions; both draws are seeded.
_SCENES = 8
_MARKER = ".shortv-demo"

Table = Callable[[str, list[tuple[str, ...]]], None]


def run_demo(output: Path, *, report: Callable[[str], None], table: Table) -> Path:
    """Scores, packages, verifies, evaluates and publishes the demonstration model, and loads it as a stranger would.

    Args:
        output: folder for everything; an earlier demo's is replaced.
        report: called with a line after each step.
        table: called with a title and rows, of what was measured and at the end.

    Returns:
        The published card.

    Raises:
        ShortVError: the folder is not an earlier demo's, or a step failed.
    """
    if "huggingface_hub" in sys.modules:
        raise ShortVError(
            "the demo needs a process of its own (the Hub's address is read at import); run it as a command."
        )
    _prepare(output)
    rows: list[tuple[str, ...]] = []
    started = time.perf_counter()
    with LoopbackHub() as hub:
        # Before huggingface_hub is imported: it reads its settings once. Nothing of the user's cache is touched.
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        os.environ.update(hub.env(), **quiet, HF_HOME=str((output / "hf-home").resolve()))

        import torch

        from .. import pipeline
        from ..publish import push_package
        from ..verification import verify

        def step(name: str, result: str) -> None:
            nonlocal started
            rows.append((name, result, f"{time.perf_counter() - started:.1f} s"))
            report(f"{name}: {result}")
            started = time.perf_counter()

        torch.set_num_threads(1)  # on matrices this small, threads only wait for each other

        base = Path(__file__).with_name("model")
        hub.create_repo(BASE_ID, files={path.name: path for path in base.iterdir()})
        chosen_by = scenes.write_folder(output / "calibration", scenes.CALIBRATION_SEEDS[:_SCENES])
        held_out = scenes.write_folder(output / "held-out", scenes.EVALUATION_SEEDS[:_SCENES])
        step("base model", f"{BASE_ID}: a small LLaVA that was trained on drawn scenes; {2 * _SCENES} new scenes")

        calibration = pipeline.CalibrationChoice(str(chosen_by), CALIBRATION_SAMPLES)
        scores = pipeline.score(BASE_ID, output / "scores.json", calibration=calibration)
        lowest = min(range(len(scores.visual)), key=scores.visual.__getitem__)
        step("score", f"{scores.num_samples} samples; layer {lowest} contributes least ({scores.visual[lowest]:.2g})")

        recipe = pipeline.package(BASE_ID, output / "package", pipeline.Choice(scores=output / "scores.json"))
        ratio = recipe.cost["flops_ratio"]
        table("\nLayer Contribution, in nats", _contributions(scores, recipe.frozen_layers))
        step("package", f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen; FLOPs ratio {ratio:.3f}")

        verification = verify(output / "package")
        verification.raise_if_failed()
        step("verify", f"{verification.summary} in a fresh process")

        evaluation = pipeline.evaluate(
            str(output / "package"),
            output / "evaluation.json",
            data=str(held_out),
            num_samples=HELD_OUT_SAMPLES,
            group_by="task",
            baselines=True,
            update_card=True,
        )
        for title, lines in tables(evaluation):
            table(f"\n{title}", lines)
        for note in evaluation.notes:
            report(note)
        (shortv,) = (row for row in evaluation.rows if row.chosen)
        speed = shortv.speed[0]
        reached = f"prefill {speed.speed_up:.2f}x of the {speed.limit:.2f}x that its FLOPs allow"
        if shortv.accuracy is not None:
            accuracy = f"{shortv.accuracy.base.mean:.1%} -> {shortv.accuracy.changed.mean:.1%} right"
            reached = f"{accuracy} on {shortv.accuracy.num_samples} held-out questions; {reached}"
        step("evaluate", reached)

        push = push_package(output / "package", REPO_ID)
        step("publish", f"{push.url}: one commit, tagged {push.tag}")

        sample = json.loads((held_out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
        image, question = held_out / sample["file_name"], sample["question"]
        answer = _load_as_a_stranger(hub, push.tag, image, question, output)
        skipped = answer["report"]["skipped_updates"] / answer["report"]["total_updates"]
        step("load", f"{answer['model']} by AutoModel.from_pretrained; {skipped:.0%} of the token updates skipped")
        step("answer", f"{question!r} -> {answer['answer']!r}; it is {sample['answer']!r}")
        if hub.errors:
            raise ShortVError(f"the Hub saw a protocol error: {hub.errors[0]}")
    table("\nshortv-export demo", rows)
    card = output / "package" / "README.md"
    report(f"\nLook at {card}, the card, and {card.with_name('layer_contribution.png')}.")
    report("Next: shortv-export push llava-hf/llava-1.5-7b-hf USER/NAME --preset paper")
    return card


def _contributions(scores: Scores, frozen_layers: Sequence[int]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("layer", "of visual tokens", "of text tokens", "")]
    for layer, (visual, text) in enumerate(zip(scores.visual, scores.text, strict=True)):
        lines.append((str(layer), f"{visual:.2g}", f"{text:.2g}", "frozen" if layer in frozen_layers else ""))
    return lines


def _prepare(output: Path) -> None:
    if output.exists():
        if not (output / _MARKER).is_file():
            raise ShortVError(f"{output} exists and is not an earlier demo's; choose another folder with --output.")
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

"""`shortv-export demo`: the whole way on one machine, without an account and without a download."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .errors import ShortVError
from .loopback import LoopbackHub

BASE_ID = "loopback/tiny-llava"
REPO_ID = "loopback/tiny-llava-shortv"
QUESTION = "what is in this picture ?"

# Photographs that come with scikit-image, and their licences (see `help(skimage.data.rocket)` and so on).
PHOTOS = {
    "astronaut": "public domain (NASA)",
    "rocket": "public domain (SpaceX)",
    "chelsea": "CC0",
    "coffee": "CC0",
}
_QUESTIONS = (QUESTION, "describe the image in one sentence .")
_MARKER = ".shortv-demo"


def run_demo(
    output: Path,
    *,
    report: Callable[[str], None],
    table: Callable[[str, list[tuple[str, ...]]], None],
) -> None:
    """Builds a tiny LLaVA, scores, packages, verifies and publishes it, and loads it as a stranger would.

    Args:
        output: folder for everything; an earlier demo's is replaced.
        report: called with a line before each step.
        table: called with a title and rows at the end.

    Raises:
        ShortVError: the folder is not an earlier demo's, the photographs are not installed, or a step failed.
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

        from . import pipeline
        from .hub import push_package
        from .tiny import build_tiny_llava
        from .verify import verify

        def step(name: str, result: str) -> None:
            nonlocal started
            rows.append((name, result, f"{time.perf_counter() - started:.1f} s"))
            report(f"{name}: {result}")
            started = time.perf_counter()

        base = build_tiny_llava(output / "base", num_layers=8, image_size=224, num_shards=2)
        hub.create_repo(BASE_ID, files={path.name: path for path in base.iterdir()})
        photos = _write_photos(output / "photos")
        step(
            "base model",
            f"{BASE_ID}: LLaVA architecture, 8 layers, random weights; {len(PHOTOS)} photographs",
        )

        calibration = pipeline.CalibrationChoice(str(photos), len(PHOTOS) * len(_QUESTIONS))
        scores = pipeline.score(BASE_ID, output / "scores.json", calibration=calibration)
        lowest = min(range(len(scores.visual)), key=scores.visual.__getitem__)
        step(
            "score",
            f"{scores.num_samples} samples; layer {lowest} contributes least ({scores.visual[lowest]:.2g} nats)",
        )

        recipe = pipeline.package(BASE_ID, output / "package", pipeline.Choice(scores=output / "scores.json"))
        frozen = ", ".join(map(str, recipe.frozen_layers))
        step("package", f"layers {frozen} frozen; FLOPs ratio {recipe.cost['flops_ratio']:.3f}")

        verification = verify(output / "package")
        verification.raise_if_failed()
        step("verify", f"{verification.summary} in a fresh process")

        push = push_package(output / "package", REPO_ID)
        step("publish", f"{push.url}: one commit, tagged {push.tag}")

        answer = _load_as_a_stranger(hub, push.tag, photos / "astronaut.png", output)
        skipped = answer["report"]["skipped_updates"] / answer["report"]["total_updates"]
        step(
            "load",
            f"{answer['model']} by AutoModel.from_pretrained; {skipped:.0%} of the token updates skipped",
        )
        step("answer", f"{QUESTION!r} -> {answer['answer']!r} (random weights: nonsense, but its own)")
        if hub.errors:
            raise ShortVError(f"the Hub saw a protocol error: {hub.errors[0]}")
    table("\nshortv-export demo", rows)
    report(f"\nLook at {output / 'package' / 'README.md'}, the card, and {output / 'scores.json'}, what was measured.")
    report("Next: shortv-export push llava-hf/llava-1.5-7b-hf USER/NAME --preset paper")


def _prepare(output: Path) -> None:
    if output.exists():
        if not (output / _MARKER).is_file():
            raise ShortVError(f"{output} exists and is not an earlier demo's; choose another folder with --output.")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / _MARKER).touch()


def _write_photos(folder: Path) -> Path:
    """A calibration folder: photographs and their questions."""
    try:
        import skimage.data
    except ImportError:
        raise ShortVError(
            "the demo's photographs come with scikit-image: pip install 'shortv-export[demo]'."
        ) from None
    from PIL import Image

    folder.mkdir()
    lines = []
    for name in PHOTOS:
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
        lines += [json.dumps({"file_name": f"{name}.png", "question": question}) for question in _QUESTIONS]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _load_as_a_stranger(hub: LoopbackHub, revision: str, photo: Path, output: Path) -> dict:
    """Loads the published repository in a fresh process that cannot import this package, and asks about a photo."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environment |= {**hub.env(), "HF_HOME": str((output / "stranger-hf-home").resolve())}
    client = Path(__file__).with_name("demo_client.py")
    result = subprocess.run(
        [sys.executable, "-I", str(client), REPO_ID, revision, str(photo), QUESTION],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.returncode:
        raise ShortVError(f"loading {REPO_ID} in a fresh process failed: {result.stderr.strip().splitlines()[-1]}")
    return json.loads(result.stdout.strip().splitlines()[-1])

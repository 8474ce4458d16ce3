"""A push from a base that was interrupted at any step goes on, and publishes what it would have published."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shortv_export import pipeline
from shortv_export.loopback import LoopbackHub
from tests.support.packages import write_questions

REPO = "loopback/faster"


@pytest.fixture
def base(tiny_base: Any, hub: LoopbackHub) -> str:
    hub.create_repo("loopback/base", files={path.name: path for path in tiny_base().iterdir()})
    return "loopback/base"


@pytest.fixture
def arguments(base: str, photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of a push with every step but the evaluation, whose times differ from run to run."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    data = write_questions(tmp_path / "photos", photos, ("what is in this picture ?", "is there a cat ?"))
    return ["push", base, REPO, "--data", data, "--num-samples", 3, "--num-frozen", 2]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "kept", "goes_on"),
    [
        ("shortv_export.pipeline._package", "finished: scores; ", "which an interrupted push measured"),
        ("shortv_export.verification.verify_package", "finished: scores, package; ", "an interrupted push made"),
        (
            "shortv_export.publish.push_package",
            "finished: scores, package, verification; ",
            "an interrupted push made",
        ),
    ],
)
def test_an_interruption(
    run: Any, arguments: list[Any], hub: LoopbackHub, place: str, kept: str, goes_on: str
) -> None:
    assert run(*arguments)[0] == 0
    whole = published(hub)
    hub.repos.pop(REPO)
    clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, interrupt)
        status, _, err = run(*arguments)
    assert status == 130
    assert err.splitlines()[-1] == f"interrupted; {kept}run the same command to go on"
    assert REPO not in hub.repos
    status, _, err = run(*arguments)
    assert status == 0, err
    assert goes_on in err
    assert ("Scoring" in err or "scored" in err) is False
    assert published(hub) == whole
    assert not Path("faster.push.json").exists()


def test_what_was_not_asked_for_is_not_used(run: Any, arguments: list[Any], hub: LoopbackHub) -> None:
    """Other options do not go on from it, and neither does a folder of somebody else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortv_export.verification.verify_package", interrupt)
        assert run(*arguments)[0] == 130
    status, _, err = run(*arguments[:-1], 1)
    assert status == 1
    assert "not empty" in err
    # Changed scores are measured again.
    clear("faster")
    scores = Path("faster.scores.json")
    scores.write_text(scores.read_text().replace("0.", "1.", 1))
    status, _, err = run(*arguments)
    assert status == 0
    assert "scored 4 layers on 3 samples" in err
    clear()
    Path("faster").mkdir()
    Path("faster/notes.txt").write_text("mine")
    status, _, err = run(*arguments)
    assert status == 1
    assert Path("faster/notes.txt").read_text() == "mine"


KILLED = """
import os, sys
from shortv_export import cli, verification
verification.verify_package = lambda *_, **__: os._exit(9)
sys.argv = ["shortv-export", *sys.argv[1:]]
cli.main()
"""


def test_a_kill_and_an_evaluation(run: Any, arguments: list[Any], hub: LoopbackHub) -> None:
    """A fresh process dies without a word; the next one goes on, also if it dies again after the evaluation."""
    arguments += ["--evaluate", 2]
    environment = os.environ | hub.env() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    died = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert died.returncode == 9, died.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shortv_export.publish.push_package", interrupt)
        status, _, err = run(*arguments)
    assert (status, "an interrupted push made" in err) == (130, True)
    recipe = Path("faster/shortv.json").read_bytes()
    status, _, err = run(*arguments)
    assert status == 0
    assert "verified" not in err
    assert "evaluated" not in err
    assert hub.files(REPO)["shortv.json"] == recipe
    assert pipeline.verify("faster").checks[0].passed


def published(hub: LoopbackHub) -> dict[str, bytes]:
    return dict(hub.files(REPO))


def clear(*names: str) -> None:
    """Deletes a package and, if nothing is named, what lies beside it."""
    for path in Path().glob("faster*"):
        if not names or path.name in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

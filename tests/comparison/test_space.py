"""The Space of a package on the loopback Hub: its files, run in a fresh process, and what a second push changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortv_export.errors import ShortVError, UsageError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Target
from shortv_export.pipeline import push
from tests.comparison.test_page import answers, ask, text
from tests.support.hub import client_of_loopback
from tests.support.servers import free_port, serving

gradio_client = pytest.importorskip("gradio_client")

REPO_ID = "loopback/model"
SPACE = f"spaces/{REPO_ID}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with client_of_loopback(tmp_path / "cache") as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)  # gradio's client sends it
        yield hub
        assert hub.errors == []


def test_the_space_answers_as_the_model(
    hub: LoopbackHub, package: Path, tmp_path: Path, photos: dict[str, Any]
) -> None:
    """Downloaded by the Hub's client and run as a Space does: with its own files and nothing of this tool."""
    from huggingface_hub import HfApi, snapshot_download

    published = push(str(package), REPO_ID, target=Target(space=True))
    assert published.space == f"{hub.url}/{SPACE}"
    assert f"its Space is {hub.url}/{SPACE}" in published.summary
    folder = Path(snapshot_download(REPO_ID, repo_type="space", local_dir=tmp_path / "space"))
    names = {path.name for path in folder.iterdir()} - {".cache", ".gitattributes"}
    assert names == {"README.md", "app.py", "requirements.txt", "shortv_page.py"}
    card = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (card["sdk"], card["app_file"], card["models"]) == ("gradio", "app.py", [REPO_ID])
    assert f'"{published.tag}"' in (folder / "app.py").read_text()
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment = kept | hub.env() | {"HF_HOME": str(tmp_path / "home"), "GRADIO_SERVER_PORT": str(port)}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False"}
    with serving([sys.executable, "-P", "-c", _LIKE_A_SPACE], port, folder, environment, health="/") as (address, _):
        path = tmp_path / "picture.png"
        photos["chelsea"].save(path)
        base, shortv, _ = answers(package, photos["chelsea"].convert("RGB"), dtype="auto")
        _, (one, _, other, facts, _) = ask(gradio_client.Client(address, verbose=False), path)
        assert (text(one), text(other)) == (base, shortv)
        assert "token updates" in facts
    assert HfApi().space_info(REPO_ID).sha == hub.repos[SPACE].resolve("main").sha


_LIKE_A_SPACE = """
import runpy, sys
sys.path.insert(0, ".")
sys.modules["shortv_export"] = None  # a Space does not have it
runpy.run_path("app.py", run_name="__main__")
"""


def test_pushed_again(hub: LoopbackHub, package: Path) -> None:
    """Nothing is committed where nothing changed; a card that was edited stays, an edited page is mended."""
    push(str(package), REPO_ID, target=Target(space=True))
    heads = [hub.repos[key].resolve("main").sha for key in (REPO_ID, SPACE)]
    again = push(str(package), REPO_ID, target=Target(space=True))
    assert not again.changed
    assert heads == [hub.repos[key].resolve("main").sha for key in (REPO_ID, SPACE)]
    hub.commit(SPACE, {"README.md": b"---\ntitle: mine\nsdk: gradio\n---\n", "app.py": b"old", "more.txt": b"kept"})
    push(str(package), REPO_ID, target=Target(space=True))
    assert b"title: mine" in hub.files(SPACE)["README.md"]
    assert REPO_ID.encode() in hub.files(SPACE)["app.py"]
    assert hub.files(SPACE)["more.txt"] == b"kept"


def test_a_dry_run_makes_nothing(hub: LoopbackHub, package: Path) -> None:
    planned = push(str(package), REPO_ID, target=Target(space=True, dry_run=True))
    assert f"its Space is {hub.url}/{SPACE}" in planned.summary
    assert not hub.repos


def test_a_private_model_has_a_private_space(hub: LoopbackHub, package: Path) -> None:
    push(str(package), REPO_ID, target=Target(space=True, private=True))
    assert hub.repos[SPACE].private
    assert b"secret HF_TOKEN" in hub.files(SPACE)["README.md"]


def test_refusals(hub: LoopbackHub, package: Path) -> None:
    """Before anything is published; a Space of somebody else's making is replaced on request only."""
    with pytest.raises(UsageError, match="`space` does not apply with `create_pr`"):
        push(str(package), REPO_ID, target=Target(space=True, create_pr=True))
    hub.create_repo(SPACE, files={"app.py": b"mine", "README.md": b"---\nsdk: gradio\n---\n"})
    with pytest.raises(ShortVError, match=f"there is a Space {REPO_ID} which shortv-export did not make"):
        push(str(package), REPO_ID, target=Target(space=True))
    assert list(hub.repos) == [SPACE]
    push(str(package), REPO_ID, target=Target(space=True, overwrite=True))
    assert b"ShortV" in hub.files(SPACE)["app.py"]


def test_a_space_that_fails_leaves_the_model(hub: LoopbackHub, package: Path) -> None:
    """The message says so, and pushing again completes it."""
    hub.fail(lambda request: request.path == f"/api/{SPACE}/commit/main", status=403)
    with pytest.raises(ShortVError, match=rf"the model is published, but the Space {REPO_ID} cannot be written to"):
        push(str(package), REPO_ID, target=Target(space=True))
    assert "shortv.json" in hub.repos[REPO_ID].resolve("main").files
    hub.faults.clear()
    assert push(str(package), REPO_ID, target=Target(space=True)).space
    assert "app.py" in hub.repos[SPACE].resolve("main").files

"""What a loopback Hub holds after a push, and what it must hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub, Request
from tests.support.packages import publish

REPO = "loopback/model"


def contents(folder: Path, repo_id: str = REPO, *, proposed: bool = False) -> dict[str, bytes]:
    """What a repository with this package must hold: its files, with the repository's name in the card.

    The card of what is only `proposed` tells to load the newest version, as no tag is set.
    """
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    body = files["README.md"].decode().replace("your-name/your-model", repo_id).splitlines(keepends=True)[:-1]
    if proposed:
        pin = 'revision = "main"  # the newest version; no tag pins one yet\n'
        body = [pin if line.startswith('revision = "shortv-') else line for line in body]
        body = [re.sub(r"--revision shortv-\w+ ", "--revision main ", line) for line in body]
    sha256 = hashlib.sha256("".join(body).encode()).hexdigest()
    seal = f"<!-- shortv-export: sha256 of the text above: {sha256} -->\n"
    return {**files, "README.md": "".join([*body, seal]).encode()}


def published(hub: LoopbackHub, revision: str = "main", repo_id: str = REPO) -> dict[str, bytes]:
    """The files of a repository, without the Hub's own."""
    files = hub.files(repo_id, revision)
    del files[".gitattributes"]
    return files


def tags(hub: LoopbackHub, repo_id: str = REPO) -> dict[str, str]:
    """Tag -> commit."""
    return {ref.name: ref.target_commit for ref in HfApi().list_repo_refs(repo_id).tags}


def state(hub: LoopbackHub) -> dict[str, dict[str, str]]:
    """Every reference of every repository."""
    return {key: dict(repo.refs) for key, repo in hub.repos.items()}


def failure(hub: LoopbackHub, *arguments: Any, **options: Any) -> str:
    """The message of a push that fails: one line, no token in it."""
    with pytest.raises(ShortVError) as caught:
        publish(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert hub.token not in message
    return message


def refusal(hub: LoopbackHub, *arguments: Any, **options: Any) -> str:
    """As `failure`, of a push that has changed nothing on the Hub and uploaded nothing."""
    before = state(hub), len(hub.uploads)
    message = failure(hub, *arguments, **options)
    assert (state(hub), len(hub.uploads)) == before
    return message


def path_ends(method: str, end: str) -> Callable[[Request], bool]:
    """Whether a request has this method and the end of this path."""
    return lambda request: request.method == method and request.path.endswith(end)


COMMIT = path_ends("POST", "/commit/main")

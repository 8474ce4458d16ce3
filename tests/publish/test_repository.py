"""What is found before anything is created or sent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export import pipeline
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Choice, Contents, Conversion, Target
from shortv_export.records.selection import Selection
from tests.support.packages import make_package, publish
from tests.support.published import REPO, contents, failure, published, refusal, state

FROZEN = Selection((1,), 4, "given")


@pytest.fixture
def base(loopback: LoopbackHub, tiny_base: Callable[..., Path]) -> str:
    loopback.create_repo("loopback/base", files={path.name: path for path in tiny_base(num_shards=2).iterdir()})
    return "loopback/base"


def refused(hub: LoopbackHub, base: str | Path, repo_id: str, out: Path, **options: Any) -> str:
    """The message of a push of a base that changes nothing, with and without `dry_run`, and downloads no weights."""
    messages = set()
    for dry_run in (True, False):
        before, sent = state(hub), len(hub.requests)
        conversion = Conversion(out=out, choice=Choice(frozen_layers=(1,)), **options.get("conversion", {}))
        target = Target(dry_run=dry_run, **options.get("target", {}))
        with pytest.raises(ShortVError) as caught:
            pipeline.push(str(base), repo_id, target=target, conversion=conversion)
        messages.add(str(caught.value))
        assert state(hub) == before
        assert not out.exists()
        assert not any(request.path.endswith(".safetensors") for request in hub.requests[sent:])
    (message,) = messages
    assert "\n" not in message
    return message


# .gitignore


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("*.png\n*.json\n", ("config.json", "shortv.json", "layer_contribution.png")),
        ("README.md\n", ("README.md",)),
        ("*.py", ("shortv_layers.py",)),
        ("*\n!*.md\n", ("config.json", " more out of commits")),
        ("*.safetensors", ("model-00001-of-00002.safetensors",)),
    ],
)
def test_gitignore(loopback: LoopbackHub, packages: dict[str, Path], lines: str, named: tuple[str, ...]) -> None:
    loopback.create_repo(REPO, files={".gitignore": lines.encode()})
    for options in ({"overwrite": True}, {"overwrite": True, "dry_run": True}, {"overwrite": True, "create_pr": True}):
        message = refusal(loopback, packages["two"], REPO, **options)
        assert f"{REPO} has a .gitignore that keeps " in message
        assert all(name in message for name in named)
    loopback.commit(REPO, {".gitignore": b"*.tmp\n# *.json\n"})
    publish(packages["two"], REPO, overwrite=True)
    assert published(loopback) == contents(packages["two"])


def test_gitignore_beside_an_earlier_package(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    """Only files that the commit would add count."""
    publish(packages["one"], REPO)
    loopback.commit(REPO, {".gitignore": b"*.png\n*.safetensors\n"})
    assert "keeps layer_contribution.png out" in refusal(loopback, packages["two"], REPO)
    assert not publish(packages["one"], REPO).changed


def test_gitignore_of_a_branch(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    loopback.repos[REPO].refs["refs/heads/next"] = loopback.commit(REPO, {".gitignore": b"*.png\n"})
    loopback.commit(REPO, {".gitignore": None})
    assert "keeps layer_contribution.png out" in refusal(loopback, packages["two"], REPO, branch="next")
    # A new branch begins as main.
    loopback.commit(REPO, {".gitignore": b"config.json\n"})
    assert "keeps config.json out" in refusal(loopback, packages["two"], REPO, branch="newer")
    loopback.commit(REPO, {".gitignore": None})
    publish(packages["two"], REPO, branch="newest")


def test_gitignore_that_comes_during_the_push(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    """A pull request is not refused because main has moved on, but its files would be left out."""
    publish(packages["one"], REPO)
    before = published(loopback)
    change = {".gitignore": b"config.json\n"}
    loopback.meanwhile(lambda: loopback.commit(REPO, change), lambda request: "/preupload/" in request.path)
    assert "keeps config.json out of commits" in failure(loopback, packages["two"], REPO, create_pr=True)
    assert loopback.repos[REPO].discussions == []
    loopback.meanwhile(lambda: loopback.commit(REPO, change), lambda request: "/preupload/" in request.path)
    loopback.commit(REPO, {".gitignore": None})
    failure(loopback, packages["two"], REPO)
    assert published(loopback) == {**before, **change}


def test_gitignore_and_copies(loopback: LoopbackHub, base: str, tmp_path: Path) -> None:
    """Weights that the Hub would copy count, too: whether it can copy them is not known before."""
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    loopback.create_repo(REPO, files={".gitignore": b"*.safetensors\n"})
    assert "keeps model-00001-of-00002.safetensors" in refusal(loopback, package, REPO, overwrite=True)


def test_gitignore_before_a_base_is_converted(loopback: LoopbackHub, base: str, tmp_path: Path) -> None:
    loopback.create_repo(REPO, files={".gitignore": b"shortv.json\n"})
    assert "keeps shortv.json out" in refused(loopback, base, REPO, tmp_path / "out", target={"overwrite": True})


# The base's own repository


@pytest.mark.parametrize("target", ["loopback/base", "base", "Loopback/BASE", "loopback/old"])
def test_the_bases_own_repository(loopback: LoopbackHub, base: str, tmp_path: Path, target: str) -> None:
    loopback.rename(base, "loopback/old")
    loopback.rename("loopback/old", "loopback/base")
    assert "loopback/base is the base itself; publish under another name." in refused(
        loopback, base, target, tmp_path / "out", target={"overwrite": True}
    )
    package = make_package(resolve_base("loopback/old"), tmp_path / "package", FROZEN)
    assert "is the base itself" in refusal(loopback, package, target, overwrite=True)
    assert "is the base itself" in refusal(loopback, package, target, overwrite=True, dry_run=True)


def test_a_base_that_was_renamed_since(loopback: LoopbackHub, base: str, tmp_path: Path) -> None:
    package = make_package(resolve_base(base), tmp_path / "package", FROZEN, weights="reference")
    loopback.rename(base, "loopback/new")
    assert "loopback/new is the base itself" in refusal(loopback, package, "loopback/new", overwrite=True)
    publish(package, REPO)


def test_a_folder_of_the_bases_own_repository(
    loopback: LoopbackHub, base: str, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """A snapshot in the Hub's cache, and any other copy of what the repository holds."""
    snapshot = resolve_base(base).path
    assert "loopback/base is the base itself" in refused(
        loopback, snapshot, base, tmp_path / "out", target={"overwrite": True}
    )
    for name, folder in (("a", snapshot), ("b", tiny_base(num_shards=2))):
        package = make_package(resolve_base(folder), tmp_path / name, FROZEN)
        assert "loopback/base holds the base itself" in refusal(loopback, package, base, overwrite=True)
        publish(package, f"loopback/{name}")


# Licences and other metadata


def test_licences(loopback: LoopbackHub, base: str, tmp_path: Path) -> None:
    contents = {"contents": Contents(license="agpl-3.0-or-later")}
    assert "the nearest `license` is agpl-3.0." in refused(loopback, base, REPO, tmp_path / "out", conversion=contents)
    loopback.commit(base, {"README.md": b"# no metadata\n"})
    # The Hub would refuse the card of this one, too.
    loopback.repos[base].refs["refs/heads/main"] = loopback.commit(base, {"README.md": b"---\nlicense: MIT\n---\n"})
    message = refused(loopback, base, REPO, tmp_path / "out")
    assert message == (
        "the card of loopback/base names the licence 'MIT', which the Hub does not know; "
        "say which one applies with `license`, such as mit."
    )
    assert loopback.repos.keys() == {base}


def test_metadata_that_the_hub_refuses(loopback: LoopbackHub, package: Path, tmp_path: Path) -> None:
    """As of an edited card, or of a package that an earlier release made."""
    edited = shutil.copytree(package, tmp_path / "edited")
    card = edited / "README.md"
    for line in ("license: MIT", "license: {", "metrics: 3"):
        card.write_text(card.read_text().replace("license: apache-2.0", line))
        for options in ({}, {"dry_run": True}):
            message = refusal(loopback, edited, REPO, card="package", **options)
            assert "the Hub does not accept the metadata of the README.md: " in message
        card.write_text(card.read_text().replace(line, "license: apache-2.0"))
    assert loopback.repos == {}


def test_nothing_is_asked_twice(loopback: LoopbackHub, package: Path) -> None:
    """Without a .gitignore, the Hub is asked about uploads once."""
    publish(package, REPO)
    assert sum("/preupload/" in request.path for request in loopback.requests) == 1

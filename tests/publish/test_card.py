"""Which card is published: an edit is neither published nor undone without a word."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from shortv_export import pipeline
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Choice, Conversion, Target
from tests.support.packages import publish
from tests.support.published import REPO, contents, published, refusal, tags

BY_HAND = b"---\nlicense: mit\n---\n# Written by hand\n\nalice/pets\n"


def card(hub: LoopbackHub) -> bytes:
    return hub.files(REPO)["README.md"]


def edits(made: bytes) -> dict[str, bytes]:
    """Ways in which people edit a card."""
    return {
        "another": BY_HAND,
        "a word": made.replace(b"that computes less", b"that computes much less"),
        "a line more": made + b"Have fun!\n",
        "line breaks": made.replace(b"\n", b"\r\n"),
        "not text": made + b"\xff\xfe",
        "the last line": made.partition(b"<!--")[0],
        "empty": b"",
    }


@pytest.mark.parametrize("edit", edits(b""))
def test_a_card_edited_on_the_hub(loopback: LoopbackHub, packages: dict[str, Path], edit: str) -> None:
    publish(packages["one"], REPO)
    edited = edits(card(loopback))[edit]
    loopback.commit(REPO, {"README.md": edited})
    for name, options in (("one", {}), ("two", {"dry_run": True}), ("two", {"create_pr": True, "overwrite": True})):
        message = refusal(loopback, packages[name], REPO, **options)
        assert f"the card of {REPO} was edited on the Hub; keep it with `card` hub" in message
    push = publish(packages["two"], REPO, card="hub")
    assert published(loopback) == {**contents(packages["two"]), "README.md": edited}
    assert ("README.md" in push.added, "README.md" in push.deleted) == (False, False)
    assert tags(loopback)[push.tag] == push.commit
    assert not publish(packages["two"], REPO, card="hub").changed
    publish(packages["one"], REPO, card="package")
    assert published(loopback) == contents(packages["one"])
    publish(packages["two"], REPO)


def test_a_card_edited_in_the_package(loopback: LoopbackHub, package: Path, tmp_path: Path) -> None:
    made = (package / "README.md").read_bytes()
    for number, (name, edited) in enumerate(edits(made).items()):
        folder = shutil.copytree(package, tmp_path / str(number))
        (folder / "README.md").write_bytes(edited)
        assert "README.md" in refusal(loopback, folder, REPO)
        if name == "not text":
            assert "is not UTF-8 text" in refusal(loopback, folder, REPO, card="package")
            continue
        assert "ublish it as it is with `card` package" in refusal(loopback, folder, REPO)
        publish(folder, REPO, card="package")
        # Only the repository's name is put in, where the template has it.
        assert card(loopback) == edited.replace(b"your-name/your-model", REPO.encode())
        # The edit is now on the Hub, and the package that was not edited does not undo it.
        assert "was edited on the Hub" in refusal(loopback, package, REPO)
        assert not publish(folder, REPO, card="package").changed
        publish(package, REPO, card="package")
        # The package's edited card does not matter if the Hub's stays.
        publish(folder, REPO, card="hub")
        assert published(loopback) == contents(package)


def test_a_card_that_this_tool_made_is_renewed(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    publish(packages["two"], REPO)
    assert published(loopback) == contents(packages["two"])


def test_a_foreign_card(loopback: LoopbackHub, package: Path) -> None:
    """Who overwrites a foreign repository replaces its card, unless it shall stay."""
    loopback.create_repo(REPO, files={"README.md": BY_HAND, "model.bin": b"x"})
    publish(package, REPO, overwrite=True, card="hub")
    assert published(loopback) == {**contents(package), "README.md": BY_HAND}
    loopback.create_repo("loopback/other", files={"README.md": BY_HAND, "model.bin": b"x"})
    publish(package, "loopback/other", overwrite=True)
    assert published(loopback, repo_id="loopback/other") == contents(package, "loopback/other")


def test_no_card_to_keep(loopback: LoopbackHub, package: Path) -> None:
    assert f"{REPO} has no card to keep; leave out `card`." in refusal(loopback, package, REPO, card="hub")
    loopback.create_repo(REPO)
    assert "has no card to keep" in refusal(loopback, package, REPO, card="hub")


def test_a_base_is_not_converted_for_nothing(
    loopback: LoopbackHub, package: Path, tiny_base: Any, tmp_path: Path
) -> None:
    publish(package, REPO)
    loopback.commit(REPO, {"README.md": BY_HAND})
    conversion = Conversion(out=tmp_path / "out", choice=Choice(frozen_layers=(1,)))
    for target in (Target(), Target(dry_run=True)):
        with pytest.raises(ShortVError, match="was edited on the Hub"):
            pipeline.push(str(tiny_base()), REPO, target=target, conversion=conversion)
        assert not (tmp_path / "out").exists()


def test_the_flag(loopback: LoopbackHub, package: Path, run: Any) -> None:
    publish(package, REPO)
    loopback.commit(REPO, {"README.md": BY_HAND})
    status, _, stderr = run("push", package, REPO)
    assert (status, stderr.count("\n")) == (1, 1)
    assert "keep it with --card hub, or replace it with --card package." in stderr
    assert run("push", package, REPO, "--card", "both")[0] == 2
    assert run("push", package, REPO, "--card", "hub")[0] == 0
    assert card(loopback) == BY_HAND
    assert run("push", package, REPO, "--card", "package")[0] == 0
    assert card(loopback) == contents(package)["README.md"]


def test_the_card_changes_after_it_was_looked_at(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    edit = {"README.md": BY_HAND}
    loopback.meanwhile(lambda: loopback.commit(REPO, edit), lambda request: "/preupload/" in request.path)
    with pytest.raises(ShortVError, match=r"was changed during this push; nothing was overwritten\."):
        publish(packages["two"], REPO)
    assert card(loopback) == BY_HAND

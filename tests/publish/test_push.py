"""Publishes with the real client to a loopback Hub, and looks at what the Hub then holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from shortv_export import pipeline
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub, Request
from shortv_export.loopback.routes import commits
from shortv_export.options import Contents, Target
from shortv_export.packaging.package import Package
from shortv_export.packaging.seal import UNNAMED, is_as_made
from shortv_export.publish.forecast import forecast_push
from shortv_export.publish.push import push_package
from shortv_export.publish.repository import inspect_repository
from shortv_export.records.selection import Selection
from tests.support.packages import make_package, publish
from tests.support.published import COMMIT, REPO, contents, failure, path_ends, published, refusal, state, tags

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


# What is published


def test_new_repository(loopback: LoopbackHub, package: Path) -> None:
    push = publish(package, REPO)
    assert published(loopback) == contents(package)
    assert UNNAMED.encode() not in loopback.files(REPO)["README.md"]
    first, initial = loopback.commits(REPO)
    assert first.parent == initial.sha
    assert tags(loopback) == {Package.open(package).tag: first.sha}
    assert push.commit == first.sha
    assert push.tag == Package.open(package).tag
    assert push.tag.encode() in loopback.files(REPO)["README.md"]
    assert push.url == f"{loopback.url}/{REPO}"
    assert (push.changed, push.dry_run, push.deleted) == (True, False, ())
    assert set(push.added) == set(contents(package))
    assert push.uploaded_bytes == sum(map(len, contents(package).values()))
    assert push.summary.count(first.sha) == 1
    assert all(f'"{part}"' in push.snippet for part in (REPO, push.tag))
    compile(push.snippet, "snippet", "exec")
    assert not loopback.repos[REPO].private


def test_name_without_user_and_private(loopback: LoopbackHub, package: Path) -> None:
    push = publish(package, "model", private=True, commit_message="Hello")
    assert push.repo_id == REPO
    assert loopback.repos[REPO].private
    assert loopback.commits(REPO)[0].message == "Hello"


def test_again_is_no_commit(loopback: LoopbackHub, package: Path) -> None:
    first = publish(package, REPO)
    before, sent = state(loopback), len(loopback.requests)
    again = publish(package, REPO)
    assert state(loopback) == before
    assert (again.changed, again.commit, again.added) == (False, first.commit, ())
    assert "no commit" in again.summary
    assert {request.method for request in loopback.requests[sent:]} == {"GET", "HEAD"}


def test_update_sends_what_changed(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["two"], REPO)
    loopback.commit(REPO, {"notes.md": b"the owner's"})
    push = publish(packages["one"], REPO)
    # The figure was a file of the package before; the owner's file was not.
    assert published(loopback) == {**contents(packages["one"]), "notes.md": b"the owner's"}
    assert push.deleted == ("layer_contribution.png",)
    assert set(push.added) == {"config.json", "shortv.json", "README.md"}
    assert set(tags(loopback)) == {Package.open(path).tag for path in packages.values()}
    assert not any(request.method == "PUT" for request in loopback.requests[-12:])


def test_empty_repository_is_ours(loopback: LoopbackHub, package: Path) -> None:
    loopback.create_repo(REPO)
    publish(package, REPO)
    assert published(loopback) == contents(package)


def test_organisation(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.add_token("hf_member", "someone", "write", orgs=("acme",))
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    publish(package, "acme/model")
    assert published(loopback, repo_id="acme/model") == contents(package, "acme/model")


def test_organisation_that_one_may_only_read(loopback: LoopbackHub, package: Path) -> None:
    loopback.add_token("hf_member", "someone", "write", orgs=("acme",), org_role="read")
    assert "may only read in acme" in refusal(loopback, package, "acme/model", token="hf_member")
    loopback.create_repo("acme/model")
    assert "may not write" in refusal(loopback, package, "acme/model", token="hf_member")


def test_named_tag(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    first = publish(packages["one"], REPO, tag="v1.0")
    assert tags(loopback) == {first.tag: first.commit, "v1.0": first.commit}
    assert (first.named_tag, "and v1.0" in first.summary) == ("v1.0", True)
    again = publish(packages["one"], REPO, tag="v1.0")
    assert (again.changed, again.commit) == (False, first.commit)
    # A tag is never moved, as people may have pinned it.
    assert "has a tag v1.0 on another commit" in refusal(loopback, packages["two"], REPO, tag="v1.0")
    assert "has a tag v1.0 on another commit" in refusal(loopback, packages["two"], REPO, tag="v1.0", dry_run=True)
    second = publish(packages["two"], REPO, tag="v2")
    assert tags(loopback)["v2"] == second.commit
    assert "on another commit" in refusal(loopback, packages["two"], REPO, tag="v1.0")
    # What is published already can be tagged later.
    later = publish(packages["two"], REPO, tag="stable")
    assert (later.changed, tags(loopback)["stable"]) == (False, second.commit)


@pytest.mark.parametrize("tag", ["", "a b", "-v1", "v1/x", "a..b", "v1.lock", "v1.", "\nv1", "ä", "refs/tags/v1"])
def test_tag_names(loopback: LoopbackHub, package: Path, tag: str) -> None:
    assert "is no tag" in refusal(loopback, package, REPO, tag=tag)
    assert loopback.requests == []


def test_tags_that_cannot_be(loopback: LoopbackHub, package: Path) -> None:
    loopback.create_repo(REPO)
    assert "has a branch main" in refusal(loopback, package, REPO, tag="main")


def test_branch(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    push = publish(packages["two"], REPO, branch="next")
    assert published(loopback) == contents(packages["one"])
    assert published(loopback, "next") == contents(packages["two"])
    assert tags(loopback)[push.tag] == push.commit
    # A branch of what main holds already needs no commit.
    assert not publish(packages["one"], REPO, branch="copy").changed
    assert published(loopback, "copy") == contents(packages["one"])


def test_branch_of_a_new_repository(loopback: LoopbackHub, package: Path) -> None:
    publish(package, REPO, branch="next")
    assert published(loopback) == {}
    assert published(loopback, "next") == contents(package)


def test_pull_request(loopback: LoopbackHub, package: Path, tmp_path: Path) -> None:
    loopback.create_repo(REPO)
    push = publish(package, REPO, create_pr=True)
    assert push.url.endswith("/discussions/1")
    assert published(loopback, repo_id=REPO) == {}
    proposed = contents(package, REPO)
    card = proposed["README.md"].decode()
    assert f'revision = "{Package.open(package).tag}"' in card
    # No tag, so the card names none.
    found = published(loopback, "refs/pr/1", REPO)
    assert {name for name in found if found[name] != proposed[name]} == {"README.md"}
    loose = found["README.md"].decode()
    assert is_as_made(loose)
    assert Package.open(package).tag not in loose
    assert 'revision = "main"  # the newest version; no tag pins one yet' in loose
    assert (push.tag, push.snippet.count(f'"{push.commit}"')) == (None, 1)
    assert tags(loopback, REPO) == {}
    again = publish(package, REPO, create_pr=True)
    assert (again.url, again.commit) == (push.url, push.commit)
    assert len(loopback.repos[REPO].discussions) == 1

    # Merged, it loads as its card says, in a fresh process, and it is verified.
    merge(loopback, REPO, 1)
    assert published(loopback, repo_id=REPO) == found
    assert snippet_result(loopback, loose, tmp_path) == [*Package.open(package).recipe.frozen_layers]
    states = [check.passed for check in pipeline.verify(REPO).checks if check.name == "card"]
    assert states == [True]
    # Pushed again by somebody who may, it gets the tag, and its card the pin.
    last = publish(package, REPO)
    assert (last.added, tags(loopback, REPO)) == (("README.md",), {last.tag: last.commit})
    assert published(loopback, repo_id=REPO) == proposed
    assert not publish(package, REPO, create_pr=True).changed


def merge(loopback: LoopbackHub, repo_id: str, number: int) -> None:
    """What the Hub does when somebody merges a pull request."""
    repo = loopback.repos[repo_id]
    repo.refs["refs/heads/main"] = repo.refs[f"refs/pr/{number}"]
    repo.discussions[number - 1] = replace(repo.discussions[number - 1], status="merged")


def snippet_result(loopback: LoopbackHub, card: str, folder: Path) -> Any:
    """What a fresh process has frozen that loads the model as a card says, up to the question."""
    (code,) = re.findall(r"^```python\n(from PIL.*?)^question", card, re.DOTALL | re.MULTILINE)
    code += "\nimport json; print(json.dumps(model.config.frozen_layers))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | loopback.env() | {"HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_dry_run(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    plan = publish(packages["two"], REPO, dry_run=True, private=True)
    assert loopback.repos == {}
    assert (plan.changed, plan.commit, plan.dry_run) == (True, None, True)
    assert plan.uploaded_bytes == sum(map(len, contents(packages["two"]).values()))
    assert f"would push to {loopback.url}/{REPO}, a new private repository, in one commit" in plan.summary
    assert (plan.exists, plan.private, plan.replaces) == (False, True, None)
    sizes = {name: len(content) for name, content in contents(packages["two"]).items()}
    assert plan.sizes == sizes
    assert {row[1:] for row in plan.rows} == {(name, f"{size:,} bytes") for name, size in sizes.items()}
    publish(packages["two"], REPO, private=True)
    before = state(loopback)
    plan = publish(packages["one"], REPO, dry_run=True)
    assert state(loopback) == before
    assert plan.deleted == ("layer_contribution.png",)
    assert ("deleted", "layer_contribution.png", "") in plan.rows
    assert [row[0] for row in plan.rows] == ["uploaded"] * len(plan.added) + ["deleted"]
    assert (plan.exists, plan.private, plan.replaces) == (True, True, "a local base with 2 of 4 layers frozen")
    assert ", a private repository, in one commit" in plan.summary
    assert plan.summary.endswith("; this replaces the model that is there: a local base with 2 of 4 layers frozen")
    # The same model with another card replaces none.
    loopback.commit(REPO, {"README.md": b"---\nlicense: mit\n---\n"})
    plan = publish(packages["two"], REPO, dry_run=True, card="package")
    assert (plan.added, plan.replaces) == (("README.md",), None)


def test_weights_are_copied_on_the_hub(loopback: LoopbackHub, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_base(num_shards=2)
    loopback.create_repo("acme/base", files={path.name: path for path in folder.iterdir()})
    package = make_package(resolve_base("acme/base"), tmp_path / "out", Selection((1,), 4, "given"))
    weights = sum((package / shard).stat().st_size for shard in SHARDS)
    sent = len(loopback.requests)
    push = publish(package, REPO)
    assert published(loopback) == contents(package)
    assert push.copied_bytes == weights
    assert f"{weights:,} bytes copied on the Hub" in push.summary
    # On the wire: small files as base64 in the commit, and no upload to the storage.
    requests = loopback.requests[sent:]
    assert not any(request.method == "PUT" for request in requests)
    small = sum(len(content) for name, content in contents(package).items() if name not in SHARDS)
    assert push.uploaded_bytes == small
    assert sum(request.received for request in requests) < 1.5 * small + 10_000 < 120_000 < weights

    sent = len(loopback.requests)
    assert publish(package, REPO).uploaded_bytes == 0
    # The base is asked for the hashes of its weights; nothing else is sent.
    later = [request for request in loopback.requests[sent:] if "paths-info" not in request.path]
    assert sum(request.received for request in later) == 0


def test_forecast(loopback: LoopbackHub, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """The forecast for a base matches the later push, and needs no weights."""
    folder = tiny_base(num_shards=2)
    loopback.create_repo("acme/base", files={path.name: path for path in folder.iterdir()})
    selection = Selection((1,), 4, "given")
    outline = resolve_base("acme/base", weights=False)
    assert not list(outline.path.glob("model-*"))
    before = state(loopback)
    forecast = forecast_push(outline, inspect_repository(REPO), selection)
    assert state(loopback) == before
    assert not list(outline.path.glob("model-*"))
    assert ", a new public repository," in forecast.summary
    assert (forecast.deleted, forecast.replaces) == ((), None)

    base = resolve_base("acme/base")
    push = publish(make_package(base, tmp_path / "out", selection), REPO)
    assert sorted(push.added) == sorted({*forecast.copied, *forecast.uploaded, *forecast.made})
    assert forecast.copied == SHARDS
    assert forecast.copied_bytes == push.copied_bytes
    assert push.copied == SHARDS
    assert forecast.sizes == {name: push.sizes[name] for name in (*forecast.copied, *forecast.uploaded)}
    known = {name: f"{size:,} bytes" for name, size in forecast.sizes.items()}
    assert {row[1:] for row in forecast.rows} == {(name, known.get(name, "")) for name in push.added}
    made = sum(len(contents(tmp_path / "out")[name]) for name in forecast.made)
    assert forecast.uploaded_bytes == push.uploaded_bytes - made
    # Files that are there already are not sent; files that are not on the Hub are uploaded.
    again = forecast_push(outline, inspect_repository(REPO), selection)
    assert (again.copied, again.uploaded, again.exists, again.replaces) == ((), (), True, None)
    assert again.deleted == ()
    for other in (Selection((2,), 4, "given"), None):
        instead = forecast_push(outline, inspect_repository(REPO), other)
        assert instead.replaces == "acme/base with 1 of 4 layers frozen"
    reference = forecast_push(
        outline, inspect_repository("loopback/other"), selection, contents=Contents(weights="reference")
    )
    assert (reference.copied, reference.copied_bytes) == ((), 0)
    assert reference.uploaded == tuple(name for name in forecast.uploaded if "safetensors" not in name)
    local = forecast_push(resolve_base(folder, weights=False), inspect_repository("loopback/other"), None)
    assert (local.copied, local.frozen_layers) == ((), None)
    assert local.uploaded_bytes == sum((folder / name).stat().st_size for name in base.files)
    assert "layer_contribution.png" in local.made
    assert "after measuring" in local.summary


def test_weights_are_uploaded_where_the_hub_cannot_copy(
    loopback: LoopbackHub, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_base(num_shards=2)
    loopback.create_repo("acme/base", files={path.name: path for path in folder.iterdir()})
    package = make_package(resolve_base("acme/base"), tmp_path / "out", Selection((1,), 4, "given"))
    loopback.fail(path_ends("POST", "/lfs-files/duplicate"), status=400)
    push = publish(package, REPO)
    assert published(loopback) == contents(package)
    assert push.copied_bytes == 0
    assert "did not copy the weights: " in push.summary
    del loopback.repos["acme/base"]
    assert publish(package, "loopback/other").copied_bytes == 0
    assert published(loopback, repo_id="loopback/other") == contents(package, "loopback/other")


# What is refused


def test_no_token(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    message = refusal(loopback, package, REPO)
    assert message == "no token: run `hf auth login` or set HF_TOKEN."
    assert loopback.requests == []


def test_tokens_that_may_not(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.add_token("hf_reader", "reader", "read")
    loopback.add_token("hf_other", "other", "write")
    publish(package, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "may only read" in refusal(loopback, package, "reader/model")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "may not write" in refusal(loopback, package, REPO)
    assert "neither you nor" in refusal(loopback, package, "acme/model")
    monkeypatch.setenv("HF_TOKEN", "hf_invented")
    message = refusal(loopback, package, REPO)
    assert "not valid" in message
    assert "hf_invented" not in message


READ, WRITE = ["repo.content.read"], ["repo.content.read", "repo.write"]


@pytest.mark.parametrize(
    ("permissions", "repo_id", "needed"),
    [
        ({"loopback": READ}, REPO, "create loopback/model: it lacks the permission repo.write on loopback;"),
        ({}, REPO, "lacks the permission repo.write on loopback;"),
        # Permissions for another namespace, or for existing repositories only.
        ({"acme": WRITE, "loopback": READ}, REPO, "lacks the permission repo.write on loopback;"),
        ({"loopback": WRITE}, "acme/model", "lacks the permission repo.write on acme;"),
        ({"loopback": ["repo.content.write"]}, REPO, "lacks the permission repo.write on loopback;"),
        ({"loopback/model": WRITE}, REPO, "lacks the permission repo.write on loopback;"),
        ({"": ["discussion.write"], "loopback/other": WRITE}, REPO, "lacks the permission repo.write on loopback;"),
        ({"loopback": WRITE, "acme": READ}, "acme/there", "write to acme/there: it lacks the permission repo.write"),
        ({"acme/other": WRITE}, "acme/there", "it lacks the permission repo.write on acme or acme/there;"),
        ({"": ["discussion.write"]}, "acme/there", "it lacks the permission repo.write on acme or acme/there;"),
    ],
)
def test_fine_grained_tokens_that_may_not(
    loopback: LoopbackHub,
    package: Path,
    permissions: dict[str, list[str]],
    repo_id: str,
    needed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loopback.create_repo("acme/there")
    loopback.add_token("hf_fine", "loopback", "fineGrained", ("acme",), permissions=permissions)
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    with pytest.raises(ShortVError, match="fine-grained token may not") as caught:
        inspect_repository(repo_id)
    assert needed in str(caught.value)
    assert {request.method for request in loopback.requests} == {"GET"}
    assert needed in refusal(loopback, package, repo_id)


@pytest.mark.parametrize(
    ("permissions", "repo_id"),
    [
        ({"loopback": WRITE}, REPO),
        ({"acme": WRITE}, "acme/model"),
        ({"acme": ["repo.content.write"]}, "acme/there"),
        ({"acme/there": WRITE}, "acme/there"),
    ],
)
def test_fine_grained_tokens(
    loopback: LoopbackHub,
    package: Path,
    permissions: dict[str, list[str]],
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loopback Hub, too, enforces the token's permissions."""
    loopback.create_repo("acme/there")
    loopback.add_token("hf_fine", "loopback", "fineGrained", ("acme",), permissions=permissions)
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    publish(package, repo_id)
    assert published(loopback, repo_id=repo_id) == contents(package, repo_id)


def test_fine_grained_token_for_a_pull_request(loopback: LoopbackHub, package: Path) -> None:
    loopback.create_repo("acme/there")
    loopback.add_token("hf_reads", "someone", "fineGrained", permissions={"someone": READ})
    message = refusal(loopback, package, "acme/there", token="hf_reads", create_pr=True)
    assert "open a pull request in acme/there: it lacks the permission discussion.write" in message
    loopback.add_token("hf_proposes", "someone", "fineGrained", permissions={"": ["discussion.write"]})
    publish(package, "acme/there", token="hf_proposes", create_pr=True)
    assert published(loopback, "refs/pr/1", "acme/there").keys() == contents(package).keys()


def test_foreign_repository(loopback: LoopbackHub, package: Path) -> None:
    foreign = {"model.safetensors": b"x" * 100, "adapter_config.json": b"{}", "notes.md": b"mine"}
    loopback.create_repo(REPO, files=foreign)
    message = refusal(loopback, package, REPO)
    assert "was not published by shortv-export" in message
    assert "`overwrite`" in message
    assert "was not published" in refusal(loopback, package, REPO, dry_run=True)
    assert published(loopback) == foreign

    push = publish(package, REPO, overwrite=True)
    # If the old weights or adapter stayed, they would be loaded instead.
    assert published(loopback) == contents(package)
    assert push.deleted == tuple(sorted(set(foreign) - set(contents(package))))
    assert push.replaces == "one that this tool did not publish"


def test_unreadable_recipe_of_the_last_package(loopback: LoopbackHub, package: Path) -> None:
    loopback.create_repo(REPO, files={"shortv.json": b'{"format": 9}', "model.bin": b"x"})
    assert "cannot read" in refusal(loopback, package, REPO)
    publish(package, REPO, overwrite=True)
    assert published(loopback) == contents(package)


def test_private_must_stay_private(loopback: LoopbackHub, package: Path) -> None:
    loopback.create_repo(REPO)
    assert "is public" in refusal(loopback, package, REPO, private=True)


def test_pull_request_needs_a_repository(loopback: LoopbackHub, package: Path) -> None:
    assert "does not exist" in refusal(loopback, package, REPO, create_pr=True)


@pytest.mark.parametrize("repo_id", ["a/b/c", "loopback/-x", "loopback/a b"])
def test_repository_ids(loopback: LoopbackHub, package: Path, repo_id: str) -> None:
    assert "no repository id" in refusal(loopback, package, repo_id)


def test_damaged_packages(loopback: LoopbackHub, package: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(package, tmp_path / "broken")
    shard = broken / SHARDS[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"\0" if content[-1] else content[:-1] + b"\1")
    # The size is right, so only reading the file shows the damage.
    assert f"{SHARDS[0]} is damaged" in refusal(loopback, broken, REPO)
    assert loopback.repos == {}
    shard.unlink()
    assert f"missing from the package: {SHARDS[0]}" in refusal(loopback, broken, REPO)
    assert "not a complete package" in refusal(loopback, tmp_path, REPO)


def test_tag_on_another_model(loopback: LoopbackHub, package: Path) -> None:
    publish(package, REPO)
    loopback.commit(REPO, {"shortv_layers.py": b"evil = True\n"})
    refs = loopback.repos[REPO].refs
    refs[f"refs/tags/{Package.open(package).tag}"] = refs["refs/heads/main"]
    assert "on another model (shortv_layers.py differs)" in refusal(loopback, package, REPO)


def test_preflight_changes_nothing(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect_repository(REPO, Target(private=True))
    assert loopback.repos == {}
    loopback.create_repo(REPO, files={"notes.md": b"mine"})
    with pytest.raises(ShortVError, match="was not published"):
        inspect_repository(REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ShortVError, match="no token"):
        inspect_repository(REPO)


def test_offline(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(loopback, package, REPO)


# When the network fails


def requests_of_a_push(packages: dict[str, Path]) -> int:
    """How many requests a first push takes, counted on a Hub of its own."""
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        from huggingface_hub import constants

        patch.setattr(constants, "ENDPOINT", hub.url)
        publish(packages["one"], REPO)
        return len(hub.requests)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "when": "before"},
        {"status": 500, "when": "after"},
        {"status": 429, "when": "before"},
        {"status": 429, "when": "before", "retry_after": 3},
        {"action": "drop", "when": "before"},
        {"action": "drop", "when": "after"},
    ],
)
def test_any_request_may_fail_once(loopback: LoopbackHub, packages: dict[str, Path], fault: dict[str, Any]) -> None:
    """Each request of a push fails in one run: a single lost request or answer does not change the result."""
    count = requests_of_a_push(packages)
    assert count > 10
    for nth in range(1, count + 1):
        repo_id = f"loopback/model-{nth}"
        loopback.faults.clear()
        loopback.fail(nth=nth, **fault)
        push = publish(packages["one"], repo_id)
        loopback.faults.clear()  # the last one may be left: the client asks for some things once per process
        assert published(loopback, repo_id=repo_id) == contents(packages["one"], repo_id)
        assert loopback.commits(repo_id)[0].sha == push.commit
        assert len(loopback.commits(repo_id)) == 2
        assert tags(loopback, repo_id) == {push.tag: push.commit}


@pytest.mark.parametrize("when", ["before", "after"])
def test_any_request_of_a_pull_request_may_fail_once(loopback: LoopbackHub, package: Path, when: Any) -> None:
    loopback.create_repo("acme/model-0")
    sent = len(loopback.requests)
    publish(package, "acme/model-0", create_pr=True)
    for nth in range(1, len(loopback.requests) - sent + 1):
        repo_id = f"acme/model-{nth}"
        loopback.create_repo(repo_id)
        loopback.faults.clear()
        loopback.fail(nth=nth, when=when, status=503)
        push = publish(package, repo_id, create_pr=True)
        found, proposed = published(loopback, "refs/pr/1", repo_id), contents(package, repo_id)
        assert {name for name in proposed.keys() | found if found.get(name) != proposed.get(name)} == {"README.md"}
        assert push.url.endswith("/discussions/1")
        assert len(loopback.repos[repo_id].discussions) == 1


def test_lasting_failure(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    loopback.fail(COMMIT, status=500, times=100)
    before = state(loopback)
    assert "500" in failure(loopback, packages["two"], REPO)
    assert state(loopback) == before
    loopback.faults.clear()
    publish(packages["two"], REPO)
    assert published(loopback) == contents(packages["two"])


@pytest.mark.parametrize("action", ["status", "drop"])
def test_a_push_that_breaks_off_is_continued(loopback: LoopbackHub, packages: dict[str, Path], action: Any) -> None:
    """From the n-th request of an update on, the network is gone: the repository is old or new. Then a second push."""
    publish(packages["one"], "loopback/model-0")
    sent = len(loopback.requests)
    publish(packages["two"], "loopback/model-0")
    count = len(loopback.requests) - sent
    for nth in range(1, count + 1):
        repo_id = f"loopback/model-{nth}"
        publish(packages["one"], repo_id)
        loopback.fail(nth=nth, action=action, status=500, times=1000)
        with pytest.raises(ShortVError) as caught:
            publish(packages["two"], repo_id)
        assert "\n" not in str(caught.value)
        old, new = (contents(packages[name], repo_id) for name in ("one", "two"))
        assert published(loopback, repo_id=repo_id) in (old, new)
        loopback.faults.clear()
        publish(packages["two"], repo_id)
        assert published(loopback, repo_id=repo_id) == new
        assert len(loopback.commits(repo_id)) == 3
        assert set(tags(loopback, repo_id)) == {Package.open(path).tag for path in packages.values()}


def test_the_repository_changes_after_it_was_inspected(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    """Hours of scoring may lie between the look at the repository and the commit."""
    one, two = (Package.open(packages[name]) for name in ("one", "two"))

    # Somebody else creates it, in public.
    seen = inspect_repository(REPO, Target(private=True))
    loopback.create_repo(REPO)
    with pytest.raises(ShortVError, match="is public by now"):
        push_package(one, seen)
    assert published(loopback) == {}

    # It holds the package already, and then another one.
    publish(packages["one"], REPO)
    seen = inspect_repository(REPO)
    publish(packages["two"], REPO)
    with pytest.raises(
        ShortVError, match=r"held the package already, at \w+, but somebody else changed .* on main since: "
    ):
        push_package(one, seen)
    assert published(loopback) == contents(packages["two"])

    # Somebody else takes the tag.
    seen = inspect_repository(REPO, Target(tag="v1"))
    HfApi().create_tag(REPO, tag="v1", revision=tags(loopback)[one.tag])
    with pytest.raises(ShortVError, match="somebody else set the tag v1 on "):
        push_package(two, seen)
    assert tags(loopback)["v1"] == tags(loopback)[one.tag] != tags(loopback)[two.tag]


def test_somebody_else_commits_meanwhile(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)

    def commit_first(request: Request) -> bool:
        if COMMIT(request) and len(loopback.commits(REPO)) == 2:
            loopback.commit(REPO, {"config.json": b"{}"}, message="somebody else's")
        return False

    loopback.fail(commit_first)
    with pytest.raises(ShortVError, match=r"was changed during this push; nothing was overwritten\."):
        publish(packages["two"], REPO)
    assert loopback.commits(REPO)[0].message == "somebody else's"
    assert json.loads(loopback.files(REPO)["config.json"]) == {}


def test_without_xet_storage(
    loopback: LoopbackHub, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hf_xet installed, the client asks for Xet storage first; pushes succeed if the Hub has none."""
    from huggingface_hub import constants

    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    publish(package, REPO)
    assert published(loopback) == contents(package)
    assert len(loopback.commits(REPO)) == 2
    assert constants.HF_HUB_DISABLE_XET is False
    (error,) = loopback.errors
    assert "xet-write-token" in error
    # Downloads succeed, too.
    loopback.errors.clear()
    loopback.create_repo("acme/base", files={path.name: path for path in package.iterdir()})
    folder = Package.open("acme/base").folder
    assert all((folder / name).read_bytes() == (package / name).read_bytes() for name in SHARDS)
    assert any("xet-read-token" in error for error in loopback.errors)
    loopback.errors.clear()


def test_rate_limit_is_respected(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    loopback.fail(COMMIT, status=429)
    loopback.fail(COMMIT, nth=2, status=429, retry_after=7)
    loopback.fail(COMMIT, nth=3, status=429, retry_after=7000)
    publish(package, REPO)
    assert waits == [1, 7, 60]
    assert published(loopback) == contents(package)


def test_remote_tree_is_compared(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the Hub stores something else than was sent, the push fails and sets no tag."""
    apply = commits.apply_operation

    def corrupt(call: Any, base: Any, files: Any, key: str, value: Any) -> None:
        apply(call, base, files, key, value)
        if value["path"] == "config.json":
            files["config.json"] = replace(files["config.json"], oid="0" * 40)

    monkeypatch.setattr(commits, "apply_operation", corrupt)
    with pytest.raises(ShortVError, match=r"differs from the package: config\.json"):
        publish(package, REPO)
    assert tags(loopback) == {}

"""Somebody else changes the repository during a push: nothing of theirs is lost, and the answer says what is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub, Request
from shortv_export.options import Target
from shortv_export.packaging.package import Package
from shortv_export.publish.push import push_package
from shortv_export.publish.repository import inspect_repository
from tests.support.packages import publish
from tests.support.published import COMMIT, REPO, contents, failure, path_ends, published, tags


def is_tag(request: Request) -> bool:
    return request.method == "POST" and "/tag/" in request.path


def is_tree(request: Request) -> bool:
    return "/tree/" in request.path


def is_upload(request: Request) -> bool:
    return request.method == "PUT"


def head(hub: LoopbackHub, repo_id: str = REPO) -> str:
    return hub.repos[repo_id].refs["refs/heads/main"]


def set_private(hub: LoopbackHub, private: bool) -> None:
    hub.repos[REPO].private = private


def delete(hub: LoopbackHub) -> None:
    del hub.repos[REPO]


# Tags and branches


def test_a_tag_set_elsewhere_meanwhile(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    before, refs = head(loopback), loopback.repos[REPO].refs
    recipe_tag = Package.open(packages["two"]).tag
    loopback.meanwhile(lambda: refs.update({f"refs/tags/{recipe_tag}": before}), is_tag)
    message = failure(loopback, packages["two"], REPO)
    assert f"the commit {head(loopback)} was made in {REPO}" in message
    assert f"somebody else set the tag {recipe_tag} on {before}" in message
    assert tags(loopback)[recipe_tag] == before  # nobody's tag is moved
    assert published(loopback) == contents(packages["two"])


@pytest.mark.parametrize("second", [False, True])
def test_a_branch_with_the_tags_name(loopback: LoopbackHub, packages: dict[str, Path], second: bool) -> None:
    publish(packages["one"], REPO)
    name, options = ("v1", {"tag": "v1"}) if second else (Package.open(packages["two"]).tag, {})
    refs = loopback.repos[REPO].refs
    loopback.meanwhile(lambda: refs.update({f"refs/heads/{name}": refs["refs/heads/main"]}), is_tag)
    assert f"there is a branch {name}" in failure(loopback, packages["two"], REPO, **options)
    # It is seen at the start, too.
    del refs["refs/heads/main"], refs[f"refs/tags/{name}"]
    refs["refs/heads/main"] = loopback.commits(REPO, name)[0].sha
    assert f"has a branch {name}" in failure(loopback, packages["two"], REPO, **options)


def test_a_tag_deleted_meanwhile(loopback: LoopbackHub, package: Path) -> None:
    push = publish(package, REPO)
    refs = loopback.repos[REPO].refs
    loopback.meanwhile(lambda: refs.pop(f"refs/tags/{push.tag}"), path_ends("GET", "/refs"), nth=2)
    message = failure(loopback, package, REPO)
    assert f"held the package already, at {push.commit}, but the tag {push.tag} is missing" in message
    assert not publish(package, REPO).changed
    assert tags(loopback) == {push.tag: push.commit}


# Visibility


def test_made_public_before_the_commit(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    """During the upload, which may take hours: nothing is committed."""
    loopback.meanwhile(lambda: set_private(loopback, False), is_upload)
    message = failure(loopback, packages["one"], REPO, private=True)
    assert "is public by now" in message
    assert published(loopback) == {}
    set_private(loopback, True)
    publish(packages["one"], REPO, private=True)
    # A second model, too.
    loopback.meanwhile(lambda: set_private(loopback, False), lambda request: "/preupload/" in request.path)
    assert "is public by now" in failure(loopback, packages["two"], REPO, private=True)
    assert published(loopback) == contents(packages["one"])


LOOK = path_ends("GET", "/revision/main")


@pytest.mark.parametrize("request_", [COMMIT, is_tag, LOOK], ids=["commit", "tag", "look"])
def test_made_public_at_the_commit_or_after_it(loopback: LoopbackHub, package: Path, request_: Any) -> None:
    # The branch is looked at before the commit and after it.
    nth = 2 if request_ is LOOK else 1
    loopback.meanwhile(lambda: set_private(loopback, False), request_, nth)
    message = failure(loopback, package, REPO, private=True)
    assert f"the commit {head(loopback)} was made in {REPO}, but the repository is public by now" in message
    assert published(loopback) == contents(package)
    # Without `private`, that is nobody's business.
    publish(package, REPO)


# Names


def test_a_renamed_repository_has_its_new_name_everywhere(loopback: LoopbackHub, package: Path) -> None:
    loopback.create_repo("loopback/old")
    loopback.rename("loopback/old", "loopback/new")
    for typed in ("loopback/old", "Loopback/OLD", "loopback/New"):
        push = publish(package, typed)
        assert (push.repo_id, push.url) == ("loopback/new", f"{loopback.url}/loopback/new")
        assert '"loopback/new"' in push.snippet
    assert published(loopback, repo_id="loopback/new") == contents(package, "loopback/new")
    assert tags(loopback, "loopback/new") == {push.tag: push.commit}


@pytest.mark.parametrize("request_", [is_upload, COMMIT, is_tag], ids=["upload", "commit", "tag"])
def test_renamed_meanwhile(loopback: LoopbackHub, package: Path, request_: Any) -> None:
    loopback.meanwhile(lambda: loopback.rename(REPO, "loopback/new"), request_)
    message = failure(loopback, package, REPO)
    if request_ is is_upload:
        assert f"{REPO} was renamed to loopback/new during this push; push to loopback/new." in message
        assert published(loopback, repo_id="loopback/new") == {}
    else:
        assert (
            f"the commit {head(loopback, 'loopback/new')} was made in {REPO}, but the repository is called" in message
        )
    push = publish(package, REPO)
    assert published(loopback, repo_id="loopback/new") == contents(package, "loopback/new")
    assert push.repo_id == "loopback/new"


def test_a_package_from_the_hub_gets_the_name_of_its_new_repository(loopback: LoopbackHub, package: Path) -> None:
    publish(package, REPO)
    publish(Package.open(REPO).folder, "loopback/copy")
    assert published(loopback, repo_id="loopback/copy") == contents(package, "loopback/copy")


# Gone


@pytest.mark.parametrize("request_", [is_tag, path_ends("GET", "/refs")], ids=["tag", "look"])
def test_the_repository_is_deleted_after_the_commit(loopback: LoopbackHub, package: Path, request_: Any) -> None:
    loopback.meanwhile(lambda: delete(loopback), request_)
    message = failure(loopback, package, REPO)
    assert f"was made in {REPO}, but then: " in message
    assert "is not on the Hub" in message
    publish(package, REPO)
    assert published(loopback) == contents(package)


@pytest.mark.parametrize("request_", [is_tag, path_ends("GET", "/refs"), is_tree], ids=["tag", "look", "tree"])
def test_the_token_is_revoked_after_the_commit(loopback: LoopbackHub, package: Path, request_: Any) -> None:
    account = loopback.accounts[loopback.token]
    loopback.create_repo(REPO)
    loopback.meanwhile(loopback.accounts.clear, request_, nth=1 if request_ is is_tag else 2)
    message = failure(loopback, package, REPO)
    assert f"the commit {head(loopback)} was made in {REPO}, but then: " in message
    assert "Push again: that completes it." in message
    loopback.accounts[loopback.token] = account
    push = publish(package, REPO)
    assert (push.changed, tags(loopback)) == (False, {push.tag: push.commit})


def test_the_commits_answer_is_lost_and_the_card_edited(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    publish(packages["one"], REPO)
    loopback.fail(COMMIT, action="drop", when="after")

    def edit() -> None:
        if loopback.files(REPO)["shortv.json"] == contents(packages["two"])["shortv.json"]:
            loopback.commit(REPO, {"README.md": b"# Mine\n"}, message="by hand")

    loopback.meanwhile(edit, path_ends("GET", "/revision/main"), nth=2)
    message = failure(loopback, packages["two"], REPO)
    mine, ours, *_ = loopback.commits(REPO)
    assert (mine.message, ours.sha in message) == ("by hand", True)
    assert "somebody else changed README.md on main since" in message
    assert "overwritten" not in message
    assert tags(loopback)[Package.open(packages["two"]).tag] == ours.sha
    # And the card stays until somebody says otherwise.
    assert "was edited on the Hub" in failure(loopback, packages["two"], REPO)
    assert loopback.files(REPO)["README.md"] == b"# Mine\n"


def test_nobody_knows_whether_the_commit_arrived(loopback: LoopbackHub, packages: dict[str, Path]) -> None:
    """From the commit's answer on, the network is gone."""
    publish(packages["one"], REPO)
    loopback.fail(COMMIT, action="drop", when="after")
    seen: list[Request] = []

    def after_the_commit(request: Request) -> bool:
        seen.extend([request] if COMMIT(request) else [])
        return bool(seen) and not COMMIT(request)

    loopback.fail(after_the_commit, action="drop", times=1000)
    message = failure(loopback, packages["two"], REPO)
    assert "whether its commit arrived is not known" in message
    loopback.faults.clear()
    assert publish(packages["two"], REPO).changed is False
    assert len(loopback.commits(REPO)) == 3


# Two pushes at once


def meet(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub, at: Callable[[Request], bool], number: int) -> None:
    """Makes so many requests of this kind wait for each other before the Hub answers any of them."""
    barrier = threading.Barrier(number)
    serve = hub._servers[0].RequestHandlerClass._serve  # type: ignore[attr-defined]
    met: list[str] = []

    def wait(handler: Any) -> None:
        path, _, query = handler.path.partition("?")
        if at(Request(handler.command, path, query)) and len(met) < number:
            met.append(path)
            barrier.wait(timeout=60)
        serve(handler)

    for method in ("GET", "POST", "PUT"):
        monkeypatch.setattr(hub._servers[0].RequestHandlerClass, f"do_{method}", wait)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("exists", "end"),
    [
        *((False, end) for end in ("/repos/create", "/commits/main", "/commit/main", "/tag/")),
        *((True, end) for end in ("/preupload/main", "/commit/main", "/tag/")),
    ],
)
def test_two_pushes_of_one_package(
    loopback: LoopbackHub, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, exists: bool, end: str
) -> None:
    """They meet at a request: one commit, its tag, and both are done."""
    if exists:
        publish(packages["one"], REPO)
    meet(monkeypatch, loopback, lambda request: end in request.path, 2)
    seen = [inspect_repository(REPO, Target(tag="v1")) for _ in range(2)]
    with ThreadPoolExecutor(2) as workers:
        pushes = list(workers.map(lambda look: push_package(Package.open(packages["two"]), look), seen))
    assert {push.commit for push in pushes} == {head(loopback)}
    assert published(loopback) == contents(packages["two"])
    assert len(loopback.commits(REPO)) == 2 + exists
    assert {tags(loopback)[name] for name in ("v1", pushes[0].tag)} == {head(loopback)}


@pytest.mark.timeout(300)
def test_two_pushes_of_different_packages(
    loopback: LoopbackHub, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One commits; the other one says that it did not."""
    meet(monkeypatch, loopback, COMMIT, 2)

    def push(name: str) -> Any:
        try:
            return push_package(Package.open(packages[name]), seen[name])
        except ShortVError as error:
            return str(error)

    seen = {name: inspect_repository(REPO) for name in packages}
    with ThreadPoolExecutor(2) as workers:
        answers = dict(zip(packages, workers.map(push, packages), strict=True))
    (winner,) = [name for name in packages if published(loopback) == contents(packages[name])]
    (loser,) = set(packages) - {winner}
    assert answers[winner].commit == head(loopback)
    assert "was changed during this push; nothing was overwritten" in answers[loser]
    assert len(loopback.commits(REPO)) == 2


# Pull requests


def test_pull_requests(loopback: LoopbackHub, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_the_commit(change: Callable[[], Any]) -> str:
        loopback.create_repo(REPO)
        loopback.meanwhile(change, lambda request: "/discussions/" in request.path or "refs%2Fpr" in request.path)
        return failure(loopback, package, REPO, create_pr=True)

    def close() -> None:
        loopback.repos[REPO].discussions[0].status = "closed"

    def add_a_commit() -> None:
        loopback.commit(REPO, {"config.json": b"{}"}, revision="refs/pr/1")

    assert "the pull request was closed by now" in after_the_commit(close)
    loopback.repos.clear()
    assert "somebody else changed config.json on refs/pr/1 since" in after_the_commit(add_a_commit)
    loopback.repos.clear()
    assert "is not on the Hub" in after_the_commit(lambda: delete(loopback))
    loopback.repos.clear()
    assert "is called loopback/new by now" in after_the_commit(lambda: loopback.rename(REPO, "loopback/new"))

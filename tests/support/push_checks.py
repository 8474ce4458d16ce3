"""What must hold after a push, whatever went wrong: for the repository, and for what the push says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shortv_export.loopback import LoopbackHub
from tests.support.pusher import Outcome

Tree = Mapping[str, bytes]
KINDS = ("torn", "lost", "wrong done", "wrong words", "traceback", "hung", "other")
"""What can be wrong: the columns of the benchmark's table."""


class Wrong(AssertionError):
    """Something is wrong, of one of the `KINDS`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


def require(right: bool, kind: str, text: str) -> None:
    """Raises `Wrong` unless it is right."""
    assert kind in KINDS
    if not right:
        raise Wrong(kind, text)


def tree_of(hub: LoopbackHub, repo_id: str, revision: str = "main", without: Collection[str] = ()) -> Tree:
    """The files at a revision; empty if the repository does not exist."""
    files = hub.files(repo_id, revision) if repo_id in hub.repos else {}
    return {name: content for name, content in files.items() if name not in (".gitattributes", *without)}


def holds(tree: Tree, package: Tree, without: Collection[str] = ()) -> bool:
    """Whether a tree has all files of a package."""
    return {name: content for name, content in package.items() if name not in without}.items() <= tree.items()


def check_words(hub: LoopbackHub, repo_id: str, outcome: Outcome, package: Tree) -> None:
    """One line; and if the commit is there, the line says so."""
    text = outcome.text
    require(outcome.status is not None, "hung", "the push did not end")
    require("Traceback" not in text, "traceback", text)
    if outcome.status != 1:
        return
    require(text.startswith("error: ") and text.count("\n") == 1, "wrong words", f"not one line: {text}")
    if repo_id in hub.repos:
        made = [sha for sha in hub.repos[repo_id].commits if holds(tree_of(hub, repo_id, sha), package)]
        said = any(sha in text for sha in made) or "is not known" in text
        require(said if made else "was made in" not in text, "wrong words", f"commits {made}, but: {text}")


def check_whole(
    hub: LoopbackHub, repo_id: str, *allowed: Tree, files: Collection[str] = (), refs: Collection[str] = ()
) -> None:
    """Every branch, tag and pull request is as before or holds the whole package, except somebody else's."""
    trees = [{name: content for name, content in tree.items() if name not in files} for tree in allowed]
    for ref in set(hub.repos[repo_id].refs) - set(refs) if repo_id in hub.repos else ():
        whole = tree_of(hub, repo_id, ref, files) in trees
        require(whole, "torn", f"{ref} is neither the old state nor the new one")


def check_done(
    hub: LoopbackHub, repo_id: str, old: Tree, package: Tree, *, pull_request: bool = False, private: bool = False
) -> None:
    """What a push that says "done" must have left. `package` is without the files that are somebody else's."""
    require(repo_id in hub.repos, "wrong done", "there is no repository")
    repo = hub.repos[repo_id]
    require(repo.private or not private, "wrong done", "it is public")
    if pull_request:
        require(tree_of(hub, repo_id) == old, "wrong done", "main was changed")
        found = [ref for ref in repo.refs if ref.startswith("refs/pr/")]
        number = sum(holds(tree_of(hub, repo_id, ref), package) for ref in found)
        require(number == 1, "wrong done", f"{number} of the pull requests {found} hold the package")
        return
    require(holds(tree_of(hub, repo_id), package), "wrong done", "main does not hold the package")
    tags = {ref.removeprefix("refs/tags/"): sha for ref, sha in repo.refs.items() if ref.startswith("refs/tags/")}
    # A tag never moves; after a renaming it stays on the card with the old name.
    tagged = [tag for tag, sha in tags.items() if holds(tree_of(hub, repo_id, sha), package, ["README.md"])]
    require(bool(tagged), "wrong done", "no tag holds the package")
    hidden = [tag for tag in tagged if f"refs/heads/{tag}" in repo.refs]
    require(not hidden, "wrong done", f"the tags {hidden} are branches, too")
    ours = [each for each in hub.commits(repo_id) if each.message.startswith("ShortV: ")]
    number = sum(holds(tree_of(hub, repo_id, each.sha), package) for each in ours)
    require(number == 1, "other", f"{number} commits of the package")

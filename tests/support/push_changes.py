"""What somebody else may change during a push."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shortv_export.loopback import LoopbackHub

BY_HAND = {
    "card": {"README.md": b"---\nlicense: mit\n---\n# By hand\n"},
    "file": {"notes.md": b"the owner's"},
    "ignore": {".gitignore": b"*.json\n"},
}


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        make: makes it in a repository of the Hub; gets the tag of the package that is pushed, too.
        seen_by: part of the path of those requests whose answers show it.
        refused: what the second push may say instead of succeeding.
        files: names of the files that are then somebody else's.
        ref: the reference that is somebody else's; ``{}`` stands for the tag.
        private: whether it is tried with ``--private``.
    """

    make: Callable[[LoopbackHub, str, str], object]
    seen_by: str
    refused: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    ref: str = ""
    private: bool = False

    def __call__(self, hub: LoopbackHub, repo_id: str, tag: str) -> bool:
        """Makes the change, if the repository exists by now."""
        if repo_id not in hub.repos:
            return False
        self.make(hub, repo_id, tag)
        return True


def _point(kind: str) -> Callable[[LoopbackHub, str, str], object]:
    """Sets a reference on the repository's first commit."""
    return lambda hub, repo_id, tag: hub.repos[repo_id].refs.update(
        {f"refs/{kind}/{tag}": hub.commits(repo_id)[-1].sha}
    )


def _publish(hub: LoopbackHub, repo_id: str, _: str) -> None:
    hub.repos[repo_id].private = False


def _commit(name: str) -> Callable[[LoopbackHub, str, str], object]:
    return lambda hub, repo_id, _: hub.commit(repo_id, BY_HAND[name], message="by hand")


CHANGES = {
    "tag": Change(_point("tags"), "/refs", ("on another model",), ref="refs/tags/{}"),
    "branch": Change(_point("heads"), "/refs", ("has a branch",), ref="refs/heads/{}"),
    "public": Change(_publish, "/revision/", ("is public",), private=True),
    "rename": Change(lambda hub, repo_id, _: hub.rename(repo_id, f"{repo_id}-new"), "/revision/"),
    "delete": Change(lambda hub, repo_id, _: hub.repos.pop(repo_id), "/", ("does not exist",)),
    "revoke": Change(lambda hub, *_: hub.accounts.clear(), "/"),
    "card": Change(
        _commit("card"), "/revision/", ("was edited on the Hub", "was not published by"), files=BY_HAND["card"]
    ),
    "file": Change(_commit("file"), "/revision/", ("was not published by",), files=BY_HAND["file"]),
    "ignore": Change(_commit("ignore"), "/revision/", (" out of commits", "was not published by"), BY_HAND["ignore"]),
}

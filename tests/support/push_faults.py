"""Pushes in which one request fails, and the check that the repository is never left half published.

A case is one fault at one request of a push. The push runs in its own process with that fault, then again without
it. A fault *during* a request happens when the Hub has read half of its body.

After the first push, every reference must be as before or hold the whole package. After the second, the repository
must hold the whole package, added in exactly one commit, and no large file that had arrived may be sent again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortv_export.base.model import BaseModel
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import Commit, LoopbackHub, Request
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.packages import make_package, publish
from tests.support.published import contents

BASE = "loopback/base"
# A first push with uploads; the same with large weights; one where the Hub copies the weights; an update; a pull
# request.
SCENARIOS = ("new", "large", "copy", "update", "pull-request")
FAULTS: dict[str, dict[str, Any]] = {
    "500-before": {"status": 500, "when": "before"},
    "500-after": {"status": 500, "when": "after"},
    "429-before": {"status": 429, "when": "before"},
    "429-retry-after": {"status": 429, "when": "before", "retry_after": 3},
    "drop-before": {"action": "drop", "when": "before"},
    "drop-during": {"action": "drop", "when": "during"},
    "drop-after": {"action": "drop", "when": "after"},
    "kill-before": {"action": "hang", "when": "before"},
    "kill-during": {"action": "hang", "when": "during"},
    "kill-after": {"action": "hang", "when": "after"},
    # All requests from this one on fail, until the second push.
    "500-lasting": {"status": 500, "when": "before", "times": 10_000},
    "drop-lasting": {"action": "drop", "when": "before", "times": 10_000},
}


def _build(base: BaseModel, folder: Path, frozen_layers: tuple[int, ...], scores: Scores | None = None) -> Path:
    selection = Selection(frozen_layers, 4, "lc" if scores else "given")
    return make_package(base, folder, selection, scores=scores)


@dataclass(frozen=True)
class Case:
    """One fault at the `nth` request of a scenario, counted from 1."""

    scenario: str
    fault: str
    nth: int


def cases(scenario: str, requests: list[Request], faults: Iterable[str]) -> list[Case]:
    """Every fault at every request that it can apply to; in the scenario `large`, at uploads only."""
    return [
        Case(scenario, fault, nth)
        for fault in faults
        for nth, request in enumerate(requests, start=1)
        if (scenario != "large" or request.method == "PUT") and ("during" not in fault or request.received)
    ]


class Bench:
    """A loopback Hub with a base, packages of that base, and a process that pushes them.

    Args:
        folder: for everything except the bases.
        base: the folder of a base.
        large: the folder of a base with weight files of more than 10 MB. The buffers of the sockets hold about 5 MB,
            so a process that is killed in the middle of such a file has not sent all of it.
    """

    def __init__(self, folder: Path, base: Path, large: Path) -> None:
        self.hub = LoopbackHub().start()
        commit = self.hub.create_repo(BASE, files={path.name: path for path in base.iterdir()})
        local = resolve_base(base)
        on_hub = replace(local, name=BASE, repo_id=BASE, revision=commit)
        scores = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)
        self._packages = {
            "old": _build(local, folder / "old", (1, 3), scores),
            "new": _build(local, folder / "new", (1,)),
            "copy": _build(on_hub, folder / "copy", (1,)),
            "large": _build(resolve_base(large), folder / "large", (1,)),
        }
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "critical", "PYTHONWARNINGS": "ignore"}
        self._pusher = subprocess.Popen(
            [sys.executable, "-m", "tests.support.push_faults"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **self.hub.env(), **quiet, "HF_HOME": str(folder / "hf-home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._number = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._pusher.communicate()
        self.hub.stop()

    def requests(self, scenario: str) -> list[Request]:
        """The requests of a push without faults."""
        for _ in range(2):  # some requests are made once a day only; the second push is without them
            repo_id = self._prepare(scenario)
            before = len(self.hub.requests)
            answer = self._push(scenario, repo_id)
            assert answer == "pushed", answer
        return self.hub.requests[before:]

    def run(self, case: Case) -> None:
        """Runs a case.

        Raises:
            AssertionError: the repository or the outcome of a push is wrong.
        """
        hub, scenario = self.hub, case.scenario
        repo_id = self._prepare(scenario)
        old, new = self._tree(repo_id), self._expected(scenario, repo_id)
        commits = len(self._commits(repo_id))
        struck = hub.fail(nth=case.nth, **FAULTS[case.fault])
        answer = self._push(scenario, repo_id, struck if case.fault.startswith("kill") else None)
        hub.faults.clear()
        assert struck.is_set(), f"there was no such request: {answer}"
        expected = "killed" if case.fault.startswith("kill") else "refused: " if "lasting" in case.fault else "pushed"
        assert answer.startswith(expected), answer
        assert "\n" not in answer
        self._check_whole(repo_id, old, new)

        held, before = self._held(repo_id), len(hub.requests)
        answer = self._push(scenario, repo_id)
        assert answer == "pushed", answer
        self._check_whole(repo_id, old, new)
        sent = {request.path.split("/")[-1] for request in hub.requests[before:] if request.method == "PUT"}
        assert not sent & held, "a file that had arrived was sent again"
        if scenario == "pull-request":
            assert self._tree(repo_id) == old, "main was changed"
            assert self._tree(repo_id, "refs/pr/1") == new, "the pull request is not the package"
            assert len(hub.repos[repo_id].discussions) == 1, "there are two pull requests"
        else:
            assert self._tree(repo_id) == new, "the repository is not the package"
            # The first commit of a repository is the Hub's own.
            assert len(self._commits(repo_id)) == max(commits, 1) + 1, "there is more than one commit"
            refs = hub.repos[repo_id].refs
            tags = [sha for ref, sha in refs.items() if ref.startswith("refs/tags/")]
            assert refs["refs/heads/main"] in tags, "the tag is missing"
        assert hub.errors == []
        del hub.repos[repo_id]

    def package(self, scenario: str) -> Path:
        """The folder that a scenario pushes."""
        return self._packages.get(scenario, self._packages["new"])

    def _prepare(self, scenario: str) -> str:
        """Makes the repository as it is before the push; returns its id."""
        self._number += 1
        if scenario == "pull-request":  # to somebody else's repository
            repo_id = f"acme/model-{self._number}"
            self.hub.create_repo(repo_id)
            return repo_id
        repo_id = f"loopback/model-{self._number}"
        if scenario == "update":
            assert self._push("old", repo_id) == "pushed"
        return repo_id

    def _push(self, scenario: str, repo_id: str, kill_at: threading.Event | None = None) -> str:
        """Pushes; kills the process when `kill_at` is set. Returns how the push ended."""
        job = {"package": str(self.package(scenario)), "repo_id": repo_id, "create_pr": scenario == "pull-request"}
        assert self._pusher.stdin
        assert self._pusher.stdout
        self._pusher.stdin.write(json.dumps(job) + "\n")
        self._pusher.stdin.flush()
        answer = "killed"
        for line in self._pusher.stdout:
            message = json.loads(line)
            answer = message.get("answer", answer)
            if "done" in message:
                break
            if "pid" in message and kill_at:
                with suppress(ProcessLookupError):  # the push ended before the event
                    while not kill_at.wait(0.05):
                        os.kill(message["pid"], 0)
                    os.kill(message["pid"], signal.SIGKILL)
        return answer

    def _expected(self, scenario: str, repo_id: str) -> dict[str, bytes]:
        return contents(self.package(scenario), repo_id)

    def _tree(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files at a revision; empty if the repository does not exist."""
        files = self.hub.files(repo_id, revision) if repo_id in self.hub.repos else {}
        return {name: content for name, content in files.items() if name != ".gitattributes"}

    def _commits(self, repo_id: str) -> list[Commit]:
        return self.hub.commits(repo_id) if repo_id in self.hub.repos else []

    def _held(self, repo_id: str) -> set[str]:
        """sha256 of the large files that a repository has received."""
        return set(self.hub.repos[repo_id].objects) if repo_id in self.hub.repos else set()

    def _check_whole(self, repo_id: str, old: dict[str, bytes], new: dict[str, bytes]) -> None:
        """Every branch, tag and pull request must be as before or hold the whole package."""
        for ref in self.hub.repos[repo_id].refs if repo_id in self.hub.repos else ():
            assert self._tree(repo_id, ref) in (old, new), f"{ref} is neither the old state nor the new one"


def _serve() -> None:
    """Does one push for each line of stdin.

    Each push runs in a fork of this process, which has already imported everything, so starting and killing is fast.
    """
    import huggingface_hub.hf_api  # noqa: F401 - before the first fork

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _say(answer=_answer(**json.loads(line)))
            os._exit(0)
        _say(pid=child)
        os.waitpid(child, 0)
        _say(done=True)


def _answer(package: str, repo_id: str, create_pr: bool) -> str:
    time.sleep = lambda seconds: None  # no waiting between attempts
    try:
        publish(Path(package), repo_id, create_pr=create_pr)
    except ShortVError as error:
        return f"refused: {error}"
    except BaseException:
        return traceback.format_exc()
    return "pushed"


def _say(**message: Any) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    _serve()

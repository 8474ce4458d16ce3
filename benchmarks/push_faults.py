"""Every request of a push goes wrong in every way: is the repository ever left half published?

    python benchmarks/push_faults.py                          # all cases
    python benchmarks/push_faults.py --scenario update --fault kill-after

Each scenario is pushed once to a loopback Hub, whose log gives its requests. Then, for each request and each fault, a
fresh repository is brought to the state before, the push is run in a process of its own with that fault, and the same
push is run again without one. A fault *during* a request strikes when the Hub has read half of its body.

In between, the repository must be what it was or hold the whole package, and so must what the tag names; at the end it
holds the whole package, in exactly one commit, and nothing that had arrived was sent a second time. A case that breaks
any of this is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortv_export.base.resolve import resolve_base
from shortv_export.loopback.hub import Commit, LoopbackHub, Request
from shortv_export.packaging.build import build_package
from shortv_export.packaging.card import UNNAMED
from shortv_export.records.file_names import CARD_NAME
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.tiny_llava import build_tiny_llava

BASE = "loopback/base"
# A first push that uploads; one of weights that take a while to send; one that has the Hub copy the weights; an
# update; a pull request.
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
    # From this request on, nothing gets through until the second run.
    "500-lasting": {"status": 500, "when": "before", "times": 10_000},
    "drop-lasting": {"action": "drop", "when": "before", "times": 10_000},
}

# Pushes in a process forked from this one, which has imported everything: killing it costs no second.
_PUSHER = """
import json, os, sys, time, traceback
from pathlib import Path
import huggingface_hub.hf_api
from shortv_export.errors import ShortVError
from shortv_export.hub import push_package

def push(package, repo_id, create_pr):
    time.sleep = lambda seconds: None
    try:
        push_package(Path(package), repo_id, create_pr=create_pr)
    except ShortVError as error:
        return f"refused: {error}"
    except BaseException:
        return traceback.format_exc()
    return "pushed"

def say(**message):
    os.write(1, (json.dumps(message) + chr(10)).encode())

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        say(answer=push(**json.loads(line)))
        os._exit(0)
    say(pid=child)
    os.waitpid(child, 0)
    say(done=True)
"""


@dataclass(frozen=True)
class Case:
    """One fault at one request of a scenario: the `nth`, from 1."""

    scenario: str
    fault: str
    nth: int


def cases(scenario: str, requests: list[Request], faults: Iterable[str]) -> list[Case]:
    """Every fault at every request of a scenario that it can strike. Of the large push, those of its uploads."""
    return [
        Case(scenario, fault, nth)
        for fault in faults
        for nth, request in enumerate(requests, start=1)
        if (scenario != "large" or request.method == "PUT") and ("during" not in fault or request.received)
    ]


class Bench:
    """A loopback Hub with a base on it, packages of that base, and the process that pushes them.

    `base` is the base's folder, and `large` that of one whose files are larger than what the sockets hold on the way,
    about 5 MB: half of one cannot have left a process that is stopped then. Everything else goes to `folder`.
    """

    def __init__(self, folder: Path, base: Path, large: Path) -> None:
        self.hub = LoopbackHub().start()
        commit = self.hub.create_repo(BASE, files={path.name: path for path in base.iterdir()})
        local = resolve_base(base)
        on_hub = replace(local, name=BASE, repo_id=BASE, revision=commit)
        scores = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)
        self._packages = {
            "old": build_package(local, folder / "old", Selection((1, 3), 4, "lc"), scores=scores),
            "new": build_package(local, folder / "new", Selection((1,), 4, "given")),
            "copy": build_package(on_hub, folder / "copy", Selection((1,), 4, "given")),
            "large": build_package(resolve_base(large), folder / "large", Selection((1,), 4, "given")),
        }
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "critical", "PYTHONWARNINGS": "ignore"}
        self._pusher = subprocess.Popen(
            [sys.executable, "-c", _PUSHER],
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
        """What a push asks the Hub, by the Hub's log."""
        for _ in range(2):  # some questions are asked once a day
            repo_id = self._prepare(scenario)
            before = len(self.hub.requests)
            answer = self._push(scenario, repo_id)
            assert answer == "pushed", answer
        return self.hub.requests[before:]

    def run(self, case: Case) -> None:
        """Plays a case.

        Raises:
            AssertionError: it is lost.
        """
        hub, scenario = self.hub, case.scenario
        repo_id = self._prepare(scenario)
        old, new = self._tree(repo_id), self._expected(scenario, repo_id)
        commits = len(self._commits(repo_id))
        struck = hub.fail(nth=case.nth, **FAULTS[case.fault])
        answer = self._push(scenario, repo_id, struck if case.fault.startswith("kill") else None)
        hub._faults.clear()
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
        assert not sent & held, "what had arrived was sent again"
        if scenario == "pull-request":
            assert self._tree(repo_id) == old, "main was changed"
            assert self._tree(repo_id, "refs/pr/1") == new, "the pull request is not the package"
            assert len(hub._repos[repo_id].discussions) == 1, "there are two pull requests"
        else:
            assert self._tree(repo_id) == new, "the repository is not the package"
            # A repository begins with a commit of the Hub's own.
            assert len(self._commits(repo_id)) == max(commits, 1) + 1, "there is more than one commit"
            refs = hub._repos[repo_id].refs
            tags = [sha for ref, sha in refs.items() if ref.startswith("refs/tags/")]
            assert refs["refs/heads/main"] in tags, "the tag is missing"
        assert hub.errors == []
        del hub._repos[repo_id]

    def _prepare(self, scenario: str) -> str:
        """A repository in the state before the push."""
        self._number += 1
        if scenario == "pull-request":  # to somebody else
            repo_id = f"acme/model-{self._number}"
            self.hub.create_repo(repo_id)
            return repo_id
        repo_id = f"loopback/model-{self._number}"
        if scenario == "update":
            assert self._push("old", repo_id) == "pushed"
        return repo_id

    def _push(self, scenario: str, repo_id: str, kill_at: threading.Event | None = None) -> str:
        job = {"package": str(self._package(scenario)), "repo_id": repo_id, "create_pr": scenario == "pull-request"}
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
                with suppress(ProcessLookupError):  # it ended without ever getting there
                    while not kill_at.wait(0.05):
                        os.kill(message["pid"], 0)
                    os.kill(message["pid"], signal.SIGKILL)
        return answer

    def _package(self, scenario: str) -> Path:
        return self._packages.get(scenario, self._packages["new"])

    def _expected(self, scenario: str, repo_id: str) -> dict[str, bytes]:
        files = {path.name: path.read_bytes() for path in self._package(scenario).iterdir()}
        return {**files, CARD_NAME: files[CARD_NAME].replace(UNNAMED.encode(), repo_id.encode())}

    def _tree(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files at a revision; none if there is no such repository."""
        files = self.hub.files(repo_id, revision) if repo_id in self.hub._repos else {}
        return {name: content for name, content in files.items() if name != ".gitattributes"}

    def _commits(self, repo_id: str) -> list[Commit]:
        return self.hub.commits(repo_id) if repo_id in self.hub._repos else []

    def _held(self, repo_id: str) -> set[str]:
        """sha256 of the large files that have arrived in a repository."""
        return set(self.hub._repos[repo_id].objects) if repo_id in self.hub._repos else set()

    def _check_whole(self, repo_id: str, old: dict[str, bytes], new: dict[str, bytes]) -> None:
        """The old state or the whole new one: on main, at every tag and in every pull request."""
        for ref in self.hub._repos[repo_id].refs if repo_id in self.hub._repos else ():
            assert self._tree(repo_id, ref) in (old, new), f"{ref} is neither the old state nor the new one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, help="only this one")
    parser.add_argument("--fault", choices=FAULTS, help="only this one")
    arguments = parser.parse_args()
    number, lost, started = 0, [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), *build_bases(Path(folder))) as bench:
        for scenario in (arguments.scenario,) if arguments.scenario else SCENARIOS:
            requests = bench.requests(scenario)
            received = sum(request.received for request in requests)
            print(f"{scenario}: a push makes {len(requests)} requests and sends {received:,} bytes", flush=True)
            for case in cases(scenario, requests, (arguments.fault,) if arguments.fault else FAULTS):
                number += 1
                try:
                    bench.run(case)
                except AssertionError as error:
                    bench.hub._faults.clear()
                    bench.hub.errors.clear()
                    request = requests[case.nth - 1]
                    lost.append(f"{case}, ({request.method} {request.path}): {error}")
    for line in lost:
        print(f"LOST {line}")
    print(f"{number} cases, {len(lost)} lost, in {time.perf_counter() - started:.0f} s")
    sys.exit(bool(lost))


def build_bases(folder: Path) -> tuple[Path, Path]:
    """A tiny base whose weights are in two files, and one with files of more than 10 MB."""
    large = build_tiny_llava(folder / "large-base", num_shards=2, hidden_size=448)
    return build_tiny_llava(folder / "base", num_shards=2), large


if __name__ == "__main__":
    main()

"""Pushes in which something goes wrong, and the check of what they leave and say.

A case is one fault or one change by somebody else at one request of a push, two pushes at once, or a signal at some
moment. The push runs as a process of its own, then again without the fault. A fault *during* a request happens when
the Hub has read half of its body; a change happens just before the Hub answers.

After the first push, every reference must be as before, hold the whole package, or be somebody else's; and a push that
says "done" must have left what was asked for. After the second, the repository must hold the whole package, added in
exactly one commit, unless somebody else's change forbids it; and no large file that had arrived may be sent again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortv_export.base.model import BaseModel
from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub, Request
from shortv_export.packaging.package import Package
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.packages import make_package
from tests.support.published import contents
from tests.support.push_changes import CHANGES
from tests.support.push_checks import Tree, check_done, check_whole, check_words, require, tree_of
from tests.support.pusher import Outcome, Pusher

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
    # Answers that are not the Hub's, or do not come. A push may succeed or fail over them.
    "page-before": {"action": "page", "when": "before"},
    "page-after": {"action": "page", "when": "after"},
    "cut-after": {"action": "cut", "when": "after"},
    "silence-before": {"action": "hang", "when": "before"},
    "silence-after": {"action": "hang", "when": "after"},
}
_MAY_FAIL = ("page", "cut", "silence")


@dataclass(frozen=True)
class Case:
    """A fault, or a change by somebody else, at the `nth` request of a scenario, counted from 1."""

    scenario: str
    fault: str
    nth: int


def cases(scenario: str, requests: list[Request], faults: Iterable[str]) -> list[Case]:
    """Every fault at every request that it can apply to; in the scenario `large`, at uploads only."""
    return [
        Case(scenario, fault, nth)
        for fault in faults
        for nth, request in enumerate(requests, start=1)
        if (scenario != "large" or request.method == "PUT")
        and ("during" not in fault or request.received)
        and (scenario, fault) != ("pull-request", "public")  # to a repository that is public from the start
    ]


class Bench:
    """A loopback Hub with a base, packages of that base, and processes that push them.

    Args:
        folder: for everything except the bases.
        base: the folder of a base.
        large: the folder of a base with weight files of more than 10 MB. The buffers of the sockets hold about 5 MB,
            so a process that is killed in the middle of such a file has not sent all of it.
        patience: seconds after which a push counts as hung.
    """

    def __init__(self, folder: Path, base: Path, large: Path, patience: float = 60) -> None:
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
        env = {**self.hub.env(), "HF_HOME": str(folder / "hf-home")}
        self._pushers = [Pusher(env, self._packages["old"]) for _ in range(2)]
        self._account = self.hub.accounts[self.hub.token]
        self._patience = patience
        self._number = 0
        self._requests: dict[str, list[Request]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for pusher in self._pushers:
            pusher.close()
        self.hub.stop()

    def package(self, scenario: str) -> Path:
        """The folder that a scenario pushes."""
        return self._packages.get(scenario, self._packages["new"])

    def requests(self, scenario: str) -> list[Request]:
        """The requests of a push without faults."""
        if scenario in self._requests:
            return self._requests[scenario]
        for _ in range(2):  # some requests are made once a day only; the second push is without them
            repo_id = self._prepare(scenario)
            before = len(self.hub.requests)
            outcome = self._push(scenario, repo_id)
            assert outcome.done, outcome.text
        self._requests[scenario] = self.hub.requests[before:]
        return self._requests[scenario]

    # The cases

    def run(self, case: Case) -> Outcome:
        """Runs a case; returns how the first push ended.

        Raises:
            Wrong: the repository, or what a push says, is wrong.
        """
        with self._cleaned():
            return self._run_change(case) if case.fault in CHANGES else self._run_fault(case)

    def _contents(self, scenario: str, repo_id: str) -> dict[str, bytes]:
        """What the repository of a scenario must hold after its push."""
        return contents(self.package(scenario), repo_id, proposed=scenario == "pull-request")

    def _run_fault(self, case: Case) -> Outcome:
        hub, scenario = self.hub, case.scenario
        repo_id = self._prepare(scenario)
        old, new = tree_of(hub, repo_id), self._contents(scenario, repo_id)
        struck = hub.fail(nth=case.nth, **FAULTS[case.fault])
        killed = case.fault.startswith("kill")
        outcome = self._push(scenario, repo_id, kill_at=struck if killed else None)
        hub.faults.clear()
        require(struck.is_set(), "other", f"there was no such request: {outcome}")
        self._check_first(scenario, repo_id, outcome, old, new)
        if killed:
            require(outcome.status == -signal.SIGKILL, "other", outcome.text)
        elif not case.fault.startswith(_MAY_FAIL):
            require(outcome.done is ("lasting" not in case.fault), "other", outcome.text)
        held, before = self._held(repo_id), len(hub.requests)
        self._complete(scenario, repo_id, old, new)
        sent = {request.path.split("/")[-1] for request in hub.requests[before:] if request.method == "PUT"}
        require(not sent & held, "other", "a file that had arrived was sent again")
        misled = case.fault.startswith(_MAY_FAIL)  # by a page that looked like success
        require(misled or hub.errors == [], "other", str(hub.errors))
        return outcome

    def _run_change(self, case: Case) -> Outcome:
        change, scenario, hub = CHANGES[case.fault], case.scenario, self.hub
        repo_id, package = self._prepare(scenario, private=change.private), self.package(case.scenario)
        options = ["--private"] if change.private else []
        old, typed = tree_of(hub, repo_id), self._contents(scenario, repo_id)
        tag, start, made = Package.open(package).tag, len(hub.requests), []
        hub.meanwhile(lambda: made.append(change(hub, repo_id, tag)), nth=case.nth)
        outcome = self._push(scenario, repo_id, options)
        hub.faults.clear()
        if not any(made):  # the repository did not exist yet, or the push had ended
            return outcome

        def check(done: bool) -> None:
            now = hub.current_key(repo_id)
            new = {name: file for name, file in self._contents(scenario, now).items() if name not in change.files}
            check_whole(hub, now, old, new, typed, files=change.files, refs=[change.ref.format(tag)])
            if done:
                pull_request = scenario == "pull-request"
                before = {**old, **change.files} if pull_request else old
                check_done(hub, now, before, new, pull_request=pull_request, private=change.private)
            for name, content in change.files.items() if now in hub.repos else ():
                require(hub.files(now).get(name) == content, "lost", f"somebody else's {name}")

        seen = [nth for nth, each in enumerate(hub.requests[start:], start=1) if change.seen_by in each.path]
        check_words(hub, hub.current_key(repo_id), outcome, typed)
        check(outcome.done and case.nth <= max(seen, default=0))  # else it came after the last look
        hub.accounts[hub.token] = self._account
        again = self._push(scenario, repo_id, options)
        require(
            again.done or any(words in again.text for words in change.refused),
            "lost",
            f"the second push failed: {again.text}",
        )
        check(again.done)
        return outcome

    def run_two(self, scenario: str, first: str, second: str, delay: float) -> list[Outcome]:
        """Pushes two packages at once, to a new repository or as an update; the second starts a little later."""
        with self._cleaned():
            return self._run_two(self._prepare(scenario), (first, second), delay)

    def run_signal(self, scenario: str, number: int, seconds: float) -> Outcome:
        """Sends a signal to a push after so many seconds."""
        with self._cleaned():
            repo_id = self._prepare(scenario)
            old, new = tree_of(self.hub, repo_id), self._contents(scenario, repo_id)
            outcome = self._push(scenario, repo_id, end_after=(seconds, number))
            self._check_first(scenario, repo_id, outcome, old, new)
            self._complete(scenario, repo_id, old, new)
            return outcome

    def _run_two(self, repo_id: str, names: tuple[str, str], delay: float) -> list[Outcome]:
        hub = self.hub
        old, trees = tree_of(hub, repo_id), [contents(self.package(name), repo_id) for name in names]

        def push(number: int) -> Outcome:
            time.sleep(number * delay)
            return self._push(names[number], repo_id, number=number)

        with ThreadPoolExecutor(2) as workers:
            outcomes = list(workers.map(push, range(2)))
        check_whole(hub, repo_id, old, *trees)
        for name, outcome, tree in zip(names, outcomes, trees, strict=True):
            check_words(hub, repo_id, outcome, tree)
            if outcome.done:  # the other one may have replaced it on main since, but not its tag
                tag = f"refs/tags/{Package.open(self.package(name)).tag}"
                require(tree_of(hub, repo_id, tag) == tree, "wrong done", f"{tag} is not the package")
        same = names[0] == names[1]
        require((all if same else any)(each.done for each in outcomes), "lost", f"not done: {outcomes}")
        require(tree_of(hub, repo_id) in trees, "lost", "main holds neither package")
        if same:
            check_done(hub, repo_id, old, trees[0])
        require(hub.errors == [], "other", str(hub.errors))
        return outcomes

    # What they need

    @contextmanager
    def _cleaned(self) -> Iterator[None]:
        """Nothing of a case reaches the next one."""
        try:
            yield
        finally:
            self.hub.faults.clear()
            self.hub.errors.clear()
            self.hub.accounts[self.hub.token] = self._account
            for key in set(self.hub.repos) - {BASE}:
                del self.hub.repos[key]

    def _check_first(self, scenario: str, repo_id: str, outcome: Outcome, old: Tree, new: Tree) -> None:
        check_words(self.hub, repo_id, outcome, new)
        check_whole(self.hub, repo_id, old, new)
        if outcome.done:
            check_done(self.hub, repo_id, old, new, pull_request=scenario == "pull-request")

    def _complete(self, scenario: str, repo_id: str, old: Tree, new: Tree) -> None:
        """Pushes again, which must succeed."""
        again = self._push(scenario, repo_id)
        require(again.done, "lost", f"the second push failed: {again.text}")
        check_whole(self.hub, repo_id, old, new)
        check_done(self.hub, repo_id, old, new, pull_request=scenario == "pull-request")

    def _prepare(self, scenario: str, private: bool = False) -> str:
        """Makes the repository as it is before the push; returns its id. The processes that push are ready."""
        for pusher in self._pushers:
            pusher.prepare()
        self._number += 1
        if scenario == "pull-request":  # to somebody else's repository
            repo_id = f"acme/model-{self._number}"
            self.hub.create_repo(repo_id)
            return repo_id
        repo_id = f"loopback/model-{self._number}"
        if scenario == "update":
            outcome = self._push("old", repo_id, ["--private"] if private else [])
            assert outcome.done, outcome.text
        return repo_id

    def _push(
        self, scenario: str, repo_id: str, options: Iterable[str] = (), *, number: int = 0, **how: Any
    ) -> Outcome:
        request = ["--create-pr"] if scenario == "pull-request" else []
        arguments = [str(self.package(scenario)), repo_id, *request, *options]
        return self._pushers[number].push(arguments, patience=self._patience, **how)

    def _held(self, repo_id: str) -> set[str]:
        """sha256 of the large files that a repository has received."""
        return set(self.hub.repos[repo_id].objects) if repo_id in self.hub.repos else set()


def _build(base: BaseModel, folder: Path, frozen_layers: tuple[int, ...], scores: Scores | None = None) -> Path:
    selection = Selection(frozen_layers, 4, "lc" if scores else "given")
    return make_package(base, folder, selection, scores=scores)

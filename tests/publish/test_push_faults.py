"""A push is killed or disturbed at any request: old or new, never between, and pushing again completes it.

`benchmarks/push_faults.py` plays all cases; these are some that need a process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shortv_export.loopback.routes import commits
from tests.support.push_faults import Bench, Case, cases


@pytest.fixture(scope="module")
def bench(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bases = tiny_base(num_shards=2), tiny_base(num_shards=2, hidden_size=448)
    with Bench(tmp_path_factory.mktemp("faults"), *bases) as bench:
        yield bench


@pytest.fixture(autouse=True)
def forget_faults(bench: Bench) -> Iterator[None]:
    yield
    bench.hub.faults.clear()


@pytest.mark.parametrize(
    ("scenario", "fault", "step"),
    [
        ("new", "kill-after", 1),
        ("new", "kill-during", 1),
        ("large", "drop-during", 1),
        ("large", "kill-during", 1),
        ("copy", "drop-after", 2),
        ("update", "kill-after", 1),
        ("pull-request", "kill-after", 2),
    ],
)
def test_every_request_in_turn(bench: Bench, scenario: str, fault: str, step: int) -> None:
    """Some of them, from the first to the last; `benchmarks/push_faults.py` plays all."""
    requests = bench.requests(scenario)
    assert len(requests) > 5
    chosen = cases(scenario, requests, [fault])[step - 1 :: step]
    assert chosen
    chosen = [*chosen[:: -(-len(chosen) // 3)], chosen[-1]]
    for case in chosen:
        try:
            bench.run(case)
        except AssertionError as error:
            request = requests[case.nth - 1]
            pytest.fail(f"request {case.nth}, {request.method} {request.path}: {error}")


def test_a_process_is_killed_in_the_middle_of_a_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process had read of the file when it was killed is more than the half that arrived, and not all."""
    sizes = {path.name: path.stat().st_size for path in bench.package("large").glob("*.safetensors")}
    (first, *_) = cases("large", bench.requests("large"), ["kill-during"])
    seen: list[dict[str, int]] = []

    def kill(pid: int, number: int, kill: Any = os.kill) -> None:
        if number:
            seen.append(positions(pid))
        kill(pid, number)

    monkeypatch.setattr(os, "kill", kill)
    bench.run(first)
    assert any(sizes.get(name, 0) / 2 < position < sizes.get(name, 0) for name, position in seen[0].items())


def positions(pid: int) -> dict[str, int]:
    """How far a process is in each of its open files, by name."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    return {
        Path(descriptor.readlink()).name: int(Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split()[1])
        for descriptor in descriptors
    }


@pytest.mark.parametrize(("scenario", "change"), [("update", "rename"), ("new", "public"), ("update", "card")])
def test_changes_by_somebody_else(bench: Bench, scenario: str, change: str) -> None:
    for case in cases(scenario, bench.requests(scenario), [change])[2::8]:
        bench.run(case)


@pytest.mark.parametrize("names", [("new", "new"), ("new", "copy")], ids=["the same", "different"])
def test_two_pushes_at_once(bench: Bench, names: tuple[str, str]) -> None:
    for scenario, delay in (("new", 0.0), ("update", 0.0), ("update", 0.05)):
        bench.run_two(scenario, *names, delay)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(bench: Bench, number: int) -> None:
    statuses = {bench.run_signal("copy", number, seconds).status for seconds in (0.05, 0.2, 0.5)}
    # Interrupted as a command is, done before, or ended before the command was ready to clean up.
    assert statuses <= ({130, 0} if number == signal.SIGINT else {143, -signal.SIGTERM, 0})


def test_the_cases_can_fail(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that applies half of a commit is found out."""
    apply = commits.apply_operation

    def forget(call: Any, base: Any, files: Any, key: str, value: Any) -> None:
        if value["path"] != "config.json":
            apply(call, base, files, key, value)

    requests = bench.requests("new")
    (commit,) = [nth for nth, request in enumerate(requests, start=1) if "/commit/" in request.path]
    monkeypatch.setattr(commits, "apply_operation", forget)
    with pytest.raises(AssertionError, match="neither the old state nor the new one"):
        bench.run(Case("new", "kill-after", commit))

"""A push is killed at any request: old or new, never between, and pushing again completes it.

The cases are those of `benchmarks/push_faults.py`, which plays all of them; these are the ones that need a process.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_FILE = Path(__file__).parents[2] / "benchmarks" / "push_faults.py"


@pytest.fixture(scope="module")
def faults() -> Any:
    spec = importlib.util.spec_from_file_location("push_faults", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["push_faults"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench(faults: Any, tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    bases = tiny_base(num_shards=2), tiny_base(num_shards=2, hidden_size=448)
    with faults.Bench(tmp_path_factory.mktemp("faults"), *bases) as bench:
        yield bench


@pytest.fixture(autouse=True)
def forget_faults(bench: Any) -> Iterator[None]:
    yield
    bench.hub._faults.clear()


@pytest.mark.parametrize(
    ("scenario", "fault"),
    [
        ("new", "kill-after"),
        ("new", "kill-during"),
        ("large", "drop-during"),
        ("large", "kill-during"),
        ("copy", "kill-before"),
        ("copy", "drop-after"),
        ("update", "kill-before"),
        ("update", "kill-after"),
        ("pull-request", "kill-after"),
    ],
)
def test_every_request_in_turn(faults: Any, bench: Any, scenario: str, fault: str) -> None:
    requests = bench.requests(scenario)
    assert len(requests) > 5
    cases = faults.cases(scenario, requests, [fault])
    assert cases
    for case in cases:
        try:
            bench.run(case)
        except AssertionError as error:
            request = requests[case.nth - 1]
            pytest.fail(f"request {case.nth}, {request.method} {request.path}: {error}")


def test_a_process_is_killed_in_the_middle_of_a_file(faults: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process had read of the file when it was killed is more than the half that arrived, and not all."""
    sizes = {path.name: path.stat().st_size for path in bench._package("large").glob("*.safetensors")}
    requests = bench.requests("large")
    (first, *_) = faults.cases("large", requests, ["kill-during"])
    seen: list[dict[str, int]] = []

    def kill(pid: int, signal: int, kill: Any = faults.os.kill) -> None:
        if signal:
            seen.append(positions(pid))
        kill(pid, signal)

    monkeypatch.setattr(faults.os, "kill", kill)
    bench.run(first)
    assert any(sizes.get(name, 0) / 2 < position < sizes.get(name, 0) for name, position in seen[0].items())


def positions(pid: int) -> dict[str, int]:
    """How far a process is in each of its open files, by name."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    return {
        Path(descriptor.readlink()).name: int(Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split()[1])
        for descriptor in descriptors
    }


def test_the_cases_can_fail(faults: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that applies half of a commit is found out."""
    from shortv_export.loopback.hub import LoopbackHub

    apply = LoopbackHub._apply

    def forget(self: LoopbackHub, repo: Any, base: Any, files: Any, key: str, value: Any) -> None:
        if value["path"] != "config.json":
            apply(self, repo, base, files, key, value)

    requests = bench.requests("new")
    (commit,) = [nth for nth, request in enumerate(requests, start=1) if "/commit/" in request.path]
    monkeypatch.setattr(LoopbackHub, "_apply", forget)
    with pytest.raises(AssertionError, match="neither the old state nor the new one"):
        bench.run(faults.Case("new", "kill-after", commit))

"""Whatever the Hub answers, a command ends with a status and at most one line.

`benchmarks/hub_faults.py` gives every wrong answer to every kind of request; here each request gets one or two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.wrong_answers import FAULTS, SLOW, wrong_fields
from tests.support.wrong_hub import Bench, Case, Seen

SCENARIOS = ("push", "package", "open")


@pytest.fixture(scope="module")
def bench(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("wrong"), tiny_base()) as bench:
        yield bench


def run(bench: Bench, case: Case, seen: Seen) -> tuple[int, str]:
    try:
        return bench.run(case)
    except AssertionError as error:
        pytest.fail(f"{case}, {seen.method} {seen.path}: {error}")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_request_gets_a_wrong_answer(bench: Bench, scenario: str) -> None:
    requests = bench.requests(scenario)
    assert len(requests) > 3
    quick = [fault for fault in FAULTS if fault not in SLOW]
    for number, (nth, seen) in enumerate(requests.items(), start=SCENARIOS.index(scenario)):
        run(bench, Case(scenario, nth, quick[number * 7 % len(quick)]), seen)  # another one in each scenario


@pytest.mark.parametrize("scenario", ["push", "open"])
def test_fields_of_other_types(bench: Bench, scenario: str) -> None:
    endings = set()
    for nth, seen in bench.requests(scenario).items():
        bodies = [*wrong_fields(seen.body)] if seen.body else []
        for body in bodies[:: max(1, len(bodies) // 2)]:
            endings.add(run(bench, Case(scenario, nth, body), seen)[1])
    assert any("the Hub's answer cannot be read" in line for line in endings)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", SLOW)
def test_an_answer_without_end(bench: Bench, fault: str) -> None:
    scenario = "push" if "json" in fault else "package"
    nth, seen = list(bench.requests(scenario).items())[-2]
    status, line = run(bench, Case(scenario, nth, fault), seen)
    assert status == 1
    assert "check the network" in line or "acme/base failed: " in line


def test_the_bench_sees_what_goes_wrong(bench: Bench) -> None:
    """A status of success with another commit is not noticed by the client; the push itself compares afterwards."""
    requests = bench.requests("push")
    (nth,) = (nth for nth, seen in requests.items() if "/commit/" in seen.path)
    body = b'{"commitUrl": "x", "commitOid": "%s"}' % (b"a" * 40)
    status, line = bench.run(Case("push", nth, body))
    assert status == 1
    assert line

"""Gives every wrong answer to every kind of request: does a command ever end with more than one line?

    python benchmarks/hub_faults.py                     # all
    python benchmarks/hub_faults.py --scenario push --what fields

See `tests/support/wrong_answers.py` for the wrong answers and `tests/support/wrong_hub.py` for what must hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.tiny_llava import build_tiny_llava
from tests.support.wrong_answers import FAULTS, SLOW, wrong_fields
from tests.support.wrong_hub import SCENARIOS, Bench, Case

WHAT = {"answers": "other bodies, statuses and headers", "fields": "JSON with one wrong field", "slow": "no end"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, help="only this one")
    parser.add_argument("--what", choices=WHAT, help="; ".join(f"{name}: {what}" for name, what in WHAT.items()))
    arguments = parser.parse_args()
    statuses: Counter[int] = Counter()
    wrong, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), build_tiny_llava(Path(folder, "base"))) as bench:
        for scenario in (arguments.scenario,) if arguments.scenario else SCENARIOS:
            requests = bench.requests(scenario)
            cases = [
                (seen, Case(scenario, nth, fault))
                for nth, seen in requests.items()
                for what in ((arguments.what,) if arguments.what else WHAT)
                for fault in faults(what, seen.body)
            ]
            print(f"{scenario}: {len(requests)} kinds of requests, {len(cases)} wrong answers", flush=True)
            for seen, case in cases:
                try:
                    statuses[bench.run(case)[0]] += 1
                except AssertionError as error:
                    wrong.append(f"{case}, ({seen.method} {seen.path}): {error}")
                    print(f"WRONG {wrong[-1]}", flush=True)
    seconds = time.perf_counter() - started
    print(
        f"{statuses.total() + len(wrong)} wrong answers: {statuses[1]} ended in one line, {statuses[0]} did no harm, "
        f"{len(wrong)} went wrong, in {seconds:.0f} s"
    )
    sys.exit(bool(wrong))


def faults(what: str, body: bytes) -> list[str | bytes]:
    """The wrong answers of a kind to a request that got this JSON."""
    if what == "fields":
        return [*wrong_fields(body)] if body else []
    return [fault for fault in FAULTS if (fault in SLOW) == (what == "slow")]


if __name__ == "__main__":
    main()

"""Tries every fault at every request of a push: is the repository ever left half published?

    python benchmarks/push_faults.py                          # all cases
    python benchmarks/push_faults.py --scenario update --fault kill-after

The requests of each scenario come from the log of a push without faults to a loopback Hub. See
`tests/support/push_faults.py` for what a case is and what must hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.push_faults import FAULTS, SCENARIOS, Bench, cases
from tests.support.tiny_llava import build_tiny_llava


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
                    bench.hub.faults.clear()
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

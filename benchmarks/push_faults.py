"""Pushes while something goes wrong: is a repository ever left torn, is anything lost, is any answer wrong?

    python benchmarks/push_faults.py                          # all, about an hour on two cores
    python benchmarks/push_faults.py --kind signal two
    python benchmarks/push_faults.py --kind fault change --scenario update --fault kill-after rename

Kinds: `fault`, a request or its answer goes wrong; `change`, somebody else changes the repository just before a
request is answered; `two`, two pushes at once; `signal`, the process is ended at a random moment. Faults and changes
happen at every request in turn; the requests of each scenario come from the log of a push to a loopback Hub.

The table counts tries and what was wrong with them. See `tests/support/push_faults.py` for what a case is, and
`tests/support/push_checks.py` for what must hold.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.push_changes import CHANGES
from tests.support.push_checks import KINDS, Wrong
from tests.support.push_faults import FAULTS, SCENARIOS, Bench, cases
from tests.support.tiny_llava import build_tiny_llava

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
Try = tuple[str, str, Callable[[], object]]  # its row in the table, what it is, and the try itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("fault", "change", "two", "signal"), nargs="+", help="only these")
    parser.add_argument("--scenario", choices=SCENARIOS, nargs="+", default=SCENARIOS, help="only these")
    parser.add_argument("--fault", choices=(*FAULTS, *CHANGES), nargs="+", help="only these faults and changes")
    parser.add_argument("--every", type=int, default=1, help="take every n-th case only")
    parser.add_argument("--random", type=int, default=100, help="tries at random moments, for each of their rows")
    parser.add_argument("--patience", type=float, default=60, help="seconds after which a push counts as hung")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table: dict[str, Counter[str]] = {}
    failures, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Bench(folder, *build_bases(folder), patience=arguments.patience) as bench:
            for row, what, attempt in list(tries(bench, arguments))[:: arguments.every]:
                counts = table.setdefault(row, Counter())
                counts["tries"] += 1
                try:
                    attempt()
                except Wrong as wrong:
                    counts[wrong.kind] += 1
                    failures.append(f"{what}: {wrong}")
                    print(failures[-1].strip(), flush=True)
    columns = ("tries", *KINDS)
    print(" | ".join(["", f"{'':24}", *columns, ""]).strip())
    for row, counts in table.items():
        print(f"{row:24} | " + " | ".join(f"{counts[column]:{len(column)}}" for column in columns))
    total = sum(counts["tries"] for counts in table.values())
    print(f"{total} tries, {len(failures)} wrong, in {time.perf_counter() - started:.0f} s")
    sys.exit(bool(failures))


def tries(bench: Bench, arguments: argparse.Namespace) -> Iterator[Try]:
    """Everything that was asked for."""
    kinds = arguments.kind or ("fault", "change", "two", "signal")
    draw = random.Random(arguments.seed)
    for scenario in arguments.scenario:
        requests = bench.requests(scenario)
        named = [name for kind, names in (("fault", FAULTS), ("change", CHANGES)) if kind in kinds for name in names]
        for case in cases(scenario, requests, [name for name in named if name in (arguments.fault or named)]):
            request = requests[case.nth - 1]
            what = f"{case.scenario}, {case.fault} at {case.nth}, {request.method} {request.path}"
            yield case.fault, what, lambda case=case: bench.run(case)
    if "two" in kinds:
        for names in (("new", "new"), ("new", "copy"), ("copy", "copy")):
            row = "two of one package" if names[0] == names[1] else "two packages"
            for _ in range(arguments.random):
                scenario, delay = draw.choice(["new", "update"]), draw.choice([0.0, draw.uniform(0, 0.5)])
                what = f"{row}, {scenario}, {names}, {delay:.3f} s apart"
                yield row, what, lambda s=scenario, n=names, d=delay: bench.run_two(s, *n, d)
    if "signal" in kinds:
        for name, number in SIGNALS.items():
            for _ in range(arguments.random):
                scenario, seconds = draw.choice(arguments.scenario), draw.uniform(0, 1)
                what = f"{name} in {scenario} after {seconds:.3f} s"
                yield name, what, lambda s=scenario, n=number, t=seconds: bench.run_signal(s, n, t)


def build_bases(folder: Path) -> tuple[Path, Path]:
    """A tiny base whose weights are in two files, and one with files of more than 10 MB."""
    large = build_tiny_llava(folder / "large-base", num_shards=2, hidden_size=448)
    return build_tiny_llava(folder / "base", num_shards=2), large


if __name__ == "__main__":
    main()

"""Runs the measures one after the other in one lab and writes ``build/bench.json``."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from bench import report
from bench.lab import BenchLab, two_hosts
from bench.measures import (
    delta_random_4k,
    failover,
    freeze,
    idle_cycle,
    initial,
    memory,
    merge,
    planned_downtime,
    replica_writes,
    resync_1pct,
    reverse,
    verify_read,
)

RESULT: Final = Path("build/bench.json")
LAST_FULL: Final = Path(__file__).with_name("last-full.json")


class Entry(NamedTuple):
    """A measure, and whether the quick run has time for it."""

    run: Callable[..., report.Measure]
    quick: bool = True


MEASURES: Final = {
    "initial": Entry(initial.run),
    "idle_cycle": Entry(idle_cycle.run),
    "delta_random_4k": Entry(delta_random_4k.run, quick=False),
    "resync_1pct": Entry(resync_1pct.run),
    "failover": Entry(failover.run),
    "freeze": Entry(freeze.run, quick=False),
    "planned_downtime": Entry(planned_downtime.run, quick=False),
    "reverse": Entry(reverse.run, quick=False),
    "replica_writes": Entry(replica_writes.run, quick=False),
    "merge": Entry(merge.run),
    "verify_read": Entry(verify_read.run, quick=False),
    "memory": Entry(memory.run, quick=False),
}


def main() -> int:
    """Run from the command line; tell whether all measures were taken (not whether they hold)."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="under five minutes; the rest comes from the last full run"
    )
    parser.add_argument("--only", action="append", choices=MEASURES, metavar="NAME", help="only this one; repeatable")
    chosen = parser.parse_args()
    begun = time.monotonic()
    with two_hosts() as lab:
        measured = _run_all(lab, quick=chosen.quick, only=chosen.only)
    machine = report.machine()
    full = not chosen.quick and not chosen.only
    measures = measured if full else report.with_left_out(measured, LAST_FULL)
    document = json.dumps({"machine": machine, "measures": measures}, indent=2) + "\n"
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(document)
    if full:
        LAST_FULL.write_text(document)
    print(report.table(measures))
    print(f"{RESULT} written after {time.monotonic() - begun:.0f} s")
    return 0


def _run_all(lab: BenchLab, *, quick: bool, only: list[str] | None) -> dict[str, report.Measure]:
    measured = {}
    for name, entry in MEASURES.items():
        if (only and name not in only) or (quick and not entry.quick):
            continue
        begun = time.monotonic()
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        measured[name] = entry.run(lab, quick=quick)
        print(f"bench: {name} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return measured

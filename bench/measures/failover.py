"""Failover, from the command to the running VM, beside ``virsh start`` of the same VM on the same host."""

import time

from bench.hosts import virsh
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread

#: Seconds that a failover may take longer than the start alone.
ALLOWED = 2.0


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Fail several guests over, and start each of them once more by virsh."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(3 if quick else 5):
        guest = f"failover{number}"
        lab.add_guest(guest)
        lab.primary.vmreplica("enable", guest, "--to", lab.replica.name, "--every", "24h")
        virsh(lab.primary, "destroy", guest)
        begun = time.perf_counter()
        report = lab.replica.vmreplica("failover", guest, "--yes")
        ours.append(time.perf_counter() - begun)
        if not report["started"]:
            raise RuntimeError(f"{guest} was not started: {report}")
        virsh(lab.replica, "destroy", guest)
        begun = time.perf_counter()
        virsh(lab.replica, "start", guest)
        theirs.append(time.perf_counter() - begun)
        virsh(lab.replica, "destroy", guest)
    return measure(
        ours={"seconds": middle(ours), "all_seconds": spread(ours)},
        peer="virsh_start",
        theirs={"seconds": middle(theirs), "all_seconds": spread(theirs), "allowed_more_seconds": ALLOWED},
        ratio=middle(ours) / (middle(theirs) + ALLOWED),
        goal=1.0,
    )

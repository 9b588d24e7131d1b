"""How long no guest runs in a planned failover of an idle VM, beside a cold start on the same host."""

import time

from bench.hosts import virsh
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread
from bench.watching import Handover

#: Seconds between the end of the guest's own shutdown and the first instruction of its boot.
ALLOWED = 3.0


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Move idle guests to the replica, one after the other; start each once by virsh before."""
    ours: list[float] = []
    told: list[float] = []
    theirs: list[float] = []
    for number in range(2 if quick else 5):
        guest = f"planned{number}"
        lab.add_guest(guest)
        theirs.append(_start_again(lab, guest))
        lab.primary.vmreplica("enable", guest, "--to", lab.replica.name, "--every", "24h")
        with Handover(guest, lab.primary, lab.replica) as handover:
            report = lab.replica.vmreplica("failover", guest, "--planned", "--yes")["planned"]
        ours.append(handover.seconds())
        told.append(report["downtime"])
        lab.swapped().give_up(guest)
    return measure(
        ours={"seconds": middle(ours), "all_seconds": spread(ours), "told_seconds": spread(told)},
        peer="virsh_start",
        theirs={"seconds": middle(theirs), "all_seconds": spread(theirs), "allowed_seconds": ALLOWED},
        ratio=middle(ours) / ALLOWED,
        goal=1.0,
    )


def _start_again(lab: BenchLab, guest: str) -> float:
    virsh(lab.primary, "destroy", guest)
    begun = time.perf_counter()
    virsh(lab.primary, "start", guest)
    seconds = time.perf_counter() - begun
    lab.primary.lab_host.guest(guest).wait_booted()
    return seconds

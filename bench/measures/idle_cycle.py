"""A whole cycle of an idle guest, from begin to published on the replica, beside what libvirt alone needs for it."""

from bench.backup import Floor
from bench.content import system_disk
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread

MiB = 1 << 20
_GUEST = "idle"


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Run cycles of ours and of the floor in turns, on the same running guest."""
    repetitions = 9 if quick else 31
    lab.add_guest(_GUEST, content=system_disk(size=256 * MiB, used=128 * MiB))
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h")
    floor = Floor(lab.primary, _GUEST)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repetitions):
        ours.append(lab.cycle(_GUEST, "delta").seconds)
        theirs.append(floor.cycle())
    floor.close()
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    return measure(
        ours={"seconds": middle(ours), "all_seconds": spread(ours)},
        peer="libvirt_floor",
        theirs={"seconds": middle(theirs), "all_seconds": spread(theirs)},
        ratio=middle(ours) / middle(theirs),
        goal=3.0,
    )

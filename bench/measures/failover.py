"""An unplanned failover, from the command to the guest's running CPU, beside ``virsh start`` of the same VM there."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.content import WORKING
from bench.hosts import virsh
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread

#: Seconds that a failover may take longer than the start alone, of whatever disk and from whichever point.
ALLOWED = 1.5
_POINTS = 30
_GUEST = "failover"
#: Its second disk is large and empty: a time that grew with it would show.
_WIDE = 64 << 30


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Fail one guest over again and again, the link to its primary cut: with one point, then from two of many."""
    repetitions = 2 if quick else 7
    lab.add_guest(_GUEST, content=_wide_disk())
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h", "--keep", str(_POINTS))
    with lab.primary_lost(_GUEST):
        cases = {"one_point": _Case.measured(lab, _points(lab)[0], repetitions)}
    # One more may be there: a cycle of its own follows when the link is back.
    while (missing := _POINTS - len(_points(lab))) > 0:
        for _ in range(missing):
            lab.primary.vmreplica("sync", _GUEST)
    with lab.primary_lost(_GUEST):
        points = _points(lab)
        cases["newest_of_30"] = _Case.measured(lab, points[0], repetitions)
        cases["oldest_of_30"] = _Case.measured(lab, points[-1], repetitions)
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    worst = max(cases.values(), key=lambda case: case.ratio)
    return measure(
        ours={
            "seconds": middle(worst.ours),
            "all_seconds": {name: spread(case.ours) for name, case in cases.items()},
            "disk_bytes": _WIDE,
        },
        peer="virsh_start",
        theirs={
            "seconds": middle(worst.theirs),
            "all_seconds": {name: spread(case.theirs) for name, case in cases.items()},
            "allowed_more_seconds": ALLOWED,
        },
        ratio=worst.ratio,
        goal=1.0,
        **{f"{name}_ratio": case.ratio for name, case in cases.items()},
        **{f"{name}_goal": 1.0 for name in cases},
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """Seconds of failovers from one point, and of as many starts of the very same VM by virsh."""

    ours: list[float]
    theirs: list[float]

    @classmethod
    def measured(cls, lab: BenchLab, point: str, repetitions: int) -> "_Case":
        pairs = [_fail_over(lab, point) for _ in range(repetitions)]
        return cls([ours for ours, _ in pairs], [theirs for _, theirs in pairs])

    @property
    def ratio(self) -> float:
        return middle(self.ours) / (middle(self.theirs) + ALLOWED)


def _fail_over(lab: BenchLab, point: str) -> tuple[float, float]:
    """Fail over, start the same VM by virsh, take the failover back; tell the seconds of the first two."""
    begun = time.perf_counter()
    lab.replica.vmreplica("failover", _GUEST, "--point", point, "--yes")
    ours = time.perf_counter() - begun
    if virsh(lab.replica, "domstate", _GUEST).strip() != "running":
        raise RuntimeError(f"{_GUEST} does not run after its failover from {point}")
    virsh(lab.replica, "destroy", _GUEST)
    begun = time.perf_counter()
    virsh(lab.replica, "start", _GUEST)
    theirs = time.perf_counter() - begun
    lab.replica.vmreplica("failover", _GUEST, "--cancel", "--yes")
    return ours, theirs


def _points(lab: BenchLab) -> list[str]:
    """Name the recovery points, newest first."""
    return [point["point"] for point in lab.replica.vmreplica("points", _GUEST)["points"]]


def _wide_disk() -> Path:
    WORKING.mkdir(parents=True, exist_ok=True)
    image = WORKING / f"empty-{_WIDE >> 30}.qcow2"
    if not image.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(_WIDE)], check=True)
    return image

"""The bytes that a day's changes cost the replica's disk, from receipt until they are in the base."""

import datetime as dt
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.content import WORKING
from bench.guestday import TARGET, VM, GuestDay
from bench.lab import BenchLab
from bench.report import Measure, measure
from vmreplica.model.keep import DEFAULT_KEEP
from vmreplica.model.policy import ReplicaOffer
from vmreplica.repository import Replica, Repository

#: Most bytes that are written, as a part of the distinct bytes that the guest changed in each cycle.
ALLOWED = 2.2
_CYCLE = dt.timedelta(minutes=5)
_DAY = 288
#: Hours, with a point in each, after which the default rules keep nothing of the day.
_AFTER = 9 * 24

Result = TypeVar("Result")


class _Writes:
    """Counts what this process hands to the kernel to write: ``wchar``, with what is copied between files."""

    def __init__(self) -> None:
        self.bytes = 0

    def during(self, act: Callable[[], Result]) -> Result:
        """Count the bytes of an act."""
        before = _written()
        try:
            return act()
        finally:
            self.bytes += _written() - before


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Send a day of five-minute cycles and let it grow old, by the replica's own repository and a clock of ours."""
    del lab, quick  # left out in a quick run
    place = WORKING / "replica_writes"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        return _measure(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _measure(place: Path) -> Measure:
    guest = GuestDay(place / "disk.raw", dt.datetime(2026, 3, 1, 23, 55, tzinfo=dt.UTC))
    repository = Repository(place / "store", clock=lambda: guest.now)
    offer = ReplicaOffer(name="day", interval=300, keep=DEFAULT_KEEP, epoch=0, disk_bytes=1)
    replica = repository.create(VM, "a" * 32, offer)
    guest.first(replica)
    received, kept_up = _Writes(), _Writes()
    changed = deepest = most = 0
    for number in range(_DAY + _AFTER):
        guest.now += _CYCLE if number < _DAY else 12 * _CYCLE
        act = guest.cycle if number < _DAY else guest.idle
        changed += received.during(lambda act=act: act(replica)).changed_bytes  # type: ignore[misc]
        kept_up.during(replica.apply_retention)
        deepest = max(deepest, replica.merge_plan().chain_depth)
        most = max(most, sum(point.stored_bytes for point in replica.points()))
    received.bytes -= changed  # the guest's own disk
    _require_equal(replica, guest)
    written = received.bytes + kept_up.bytes
    return measure(
        ours={
            "bytes": written,
            "receipt_bytes": received.bytes,
            "merging_bytes": kept_up.bytes,
            "longest_chain": deepest,
            "most_stored_bytes": most,
        },
        peer="changed",
        theirs={"bytes": changed, "allowed_bytes": int(changed * ALLOWED)},
        ratio=written / changed,
        goal=ALLOWED,
    )


def _require_equal(replica: Replica, guest: GuestDay) -> None:
    """See that the newest point is what the guest's disk is."""
    newest = replica.points()[0].point
    image = replica.image(newest, TARGET)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", guest.disk, image], check=True)


def _written() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])

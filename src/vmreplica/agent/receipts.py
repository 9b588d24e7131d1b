"""Runs as the receiving side sees them: from the first request about a point to its publication."""

import datetime as dt
import threading
import time
from collections import OrderedDict
from typing import Final

from vmreplica.agent.journal import Journal
from vmreplica.model.ids import PointId, VmId
from vmreplica.model.point import PointSummary
from vmreplica.model.report import CycleReport
from vmreplica.model.units import format_duration, format_size

#: Points under construction that are remembered; of more, the duration is not known.
_MAX_OPEN: Final = 1024


class Receipts:
    """Thread-safe.

    Args:
        journal: history.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        #: When (monotonic) and at what time each began.
        self._open: OrderedDict[tuple[VmId, PointId], tuple[float, dt.datetime]] = OrderedDict()

    def opened(self, vm: VmId, point: PointId) -> None:
        """Take note that a point is begun, or found again."""
        with self._lock:
            self._open.setdefault((vm, point), (time.monotonic(), dt.datetime.now(dt.UTC)))
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)

    def published(self, vm: VmId, point: PointSummary) -> None:
        """Write a point down that is complete."""
        with self._lock:
            known = self._open.pop((vm, point.point), None)
            for key in [key for key in self._open if key[0] == vm]:
                del self._open[key]  # there is only one at a time: it was given up
        last = self._journal.history(vm, 1, side="received")
        if last and last[0].point == point.point:
            return  # asked again, as the answer was lost
        clock, started = known or (time.monotonic(), point.published)
        seconds = time.monotonic() - clock
        report = CycleReport(
            kind=point.kind,
            side="received",
            point=point.point,
            reason="received",
            started=started,
            seconds=seconds,
            outcome="published",
            guest_bytes=point.guest_bytes,
            wire_bytes=point.wire_bytes,
            rate=point.wire_bytes / seconds if known and seconds > 0 else 0.0,
        )
        self._journal.record(vm, report)
        text = (
            f"point {point.point} received: {format_size(point.wire_bytes)} for {format_size(point.guest_bytes)} "
            f"of the guest, in {format_duration(seconds)}"
        )
        self._journal.event(
            vm,
            "receipt",
            "point-received",
            text,
            point=point.point,
            point_kind=point.kind,
            guest_bytes=point.guest_bytes,
            wire_bytes=point.wire_bytes,
            seconds=round(seconds, 3),
        )

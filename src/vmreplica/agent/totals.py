"""What all runs since the agent's start add up to, for metrics."""

import threading
from collections import Counter, OrderedDict
from typing import Final

from vmreplica.model.events import JournalEvent
from vmreplica.model.ids import VmId
from vmreplica.model.report import CycleReport
from vmreplica.model.totals import VmTotals

#: VMs that are remembered; those whose last run is the longest ago give way.
_MAX_VMS: Final = 10_000


class Totals:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vms: OrderedDict[tuple[VmId, str], VmTotals] = OrderedDict()
        self._events: Counter[tuple[str, str]] = Counter()

    def add(self, vm: VmId, report: CycleReport) -> None:
        """Count a run."""
        with self._lock:
            sums = self._vms.setdefault((vm, report.side), VmTotals())
            self._vms.move_to_end((vm, report.side))
            sums.runs[report.kind, report.outcome] += 1
            sums.guest_bytes += report.guest_bytes
            sums.wire_bytes += report.wire_bytes
            sums.seconds += report.seconds
            for what, seconds in report.waiting:
                sums.waiting[what] = sums.waiting.get(what, 0.0) + seconds
            while len(self._vms) > _MAX_VMS:
                self._vms.popitem(last=False)

    def count(self, event: JournalEvent) -> None:
        """Count an event."""
        with self._lock:
            self._events[event.kind, event.severity] += 1

    def events(self) -> Counter[tuple[str, str]]:
        """Tell how many events there were, by kind and severity."""
        with self._lock:
            return Counter(self._events)

    def of(self, vm: VmId, side: str) -> VmTotals:
        """Tell the sums of a VM's runs on one side."""
        with self._lock:
            sums = self._vms.get((vm, side))
            if sums is None:
                return VmTotals()
            return VmTotals(Counter(sums.runs), sums.guest_bytes, sums.wire_bytes, sums.seconds, dict(sums.waiting))

"""Shipping of a point: threads take waiting segments in order, send them, and drop what the replica acknowledged."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import IncomingPoint, PointSummary
from vmreplica.ship.wire import Wire
from vmreplica.spool import SpoolDisk, SpoolPoint, cancelled

DEFAULT_WORKERS: Final = 2
#: Seconds between two looks at a cancel event, which cannot wake the wait for the spool.
_GLANCE: Final = 0.2


def ship_point(
    point: SpoolPoint,
    wire: Wire,
    *,
    workers: int = DEFAULT_WORKERS,
    cancel: threading.Event,
) -> PointSummary:
    """Send what the replica does not hold yet, following capture until the point is closed; then publish it there.

    Args:
        point: read from, and emptied as the replica acknowledges.
        wire: the way to the replica.
        workers: segments sent at once.
        cancel: ends it when the requests under way are answered, or the wire ends them. To be set when capture failed:
            nothing else would end the wait for its segments.

    Returns:
        The published point.

    Raises:
        VmReplicaError: the first error of any request, after all threads stopped; the same call may follow.
        Corrupt: the replica refused a segment twice.
        Conflict: ``replica-lost-segments``, ``point-discarded`` or ``cancelled``.
    """
    opening = point.opening
    _settle(point, wire.open_point(opening))
    _Shipment(point, wire, cancel).run(workers)
    if cancel.is_set() or point.closing is None:
        raise cancelled(f"sending point {opening.point} of {opening.name}")
    return wire.complete(opening.vm, opening.point, point.closing)


def _settle(point: SpoolPoint, incoming: IncomingPoint) -> None:
    """Acknowledge what the replica holds, and notice what it lost after the spool had dropped it.

    Raises:
        Conflict: ``replica-lost-segments``.
    """
    ranges = {disk.target: disk.ranges for disk in incoming.held}
    for disk in point.disks:
        held = _held(ranges.get(disk.target, ()), disk.next_segment)
        needed = held.copy()
        for number in disk.waiting():
            if number < len(held):
                needed[number] = True
                if held[number]:
                    disk.acknowledge(number)
        if not needed.all():
            raise Conflict(
                "replica-lost-segments",
                f"the replica no longer holds segments of disk {disk.target} of {point.opening.name} "
                f"that it had acknowledged (point {point.opening.point})",
                hint="the next cycle begins a new point from the last published one",
                kind="transient",
            )


def _held(ranges: tuple[tuple[int, int], ...], count: int) -> npt.NDArray[np.bool_]:
    """Spread half-open ranges, whatever a peer put into them, over the segments there are."""
    held = np.zeros(count, np.bool_)
    for low, high in ranges:
        held[max(0, min(low, count)) : max(0, min(high, count))] = True
    return held


class _Shipment:
    """One call's threads and what they share."""

    def __init__(self, point: SpoolPoint, wire: Wire, cancel: threading.Event) -> None:
        self._point = point
        self._wire = wire
        self._cancel = cancel
        self._lock = threading.Lock()
        self._taken: set[tuple[DiskTarget, int]] = set()
        self._error: BaseException | None = None

    def run(self, workers: int) -> None:
        """Send until the point is closed and everything is acknowledged; raises the first error."""
        with ThreadPoolExecutor(workers, thread_name_prefix="ship") as pool:
            for _ in range(workers):
                pool.submit(self._work)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self._cancel.is_set() and self._error is None and self._step():
                pass
        except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread
            with self._lock:
                self._error = self._error or error

    def _step(self) -> bool:
        """Send a segment, or wait for one; False when there will be no more."""
        seen = self._point.changes()
        closed = self._point.closing is not None
        task = self._take()
        if task is not None:
            self._send(*task)
        elif closed:
            return False
        else:
            self._point.wait(seen, _GLANCE)
        return True

    def _take(self) -> tuple[SpoolDisk, int] | None:
        with self._lock:
            for disk in self._point.disks:
                for number in disk.waiting():
                    if (disk.target, number) not in self._taken:
                        self._taken.add((disk.target, number))
                        return disk, number
        return None

    def _send(self, disk: SpoolDisk, number: int) -> None:
        try:
            self._put(disk, number)
        except Corrupt:
            # Damaged on the way, or in our own file: read it again; a second refusal is no accident of the wire.
            self._put(disk, number)
        disk.acknowledge(number)
        with self._lock:
            self._taken.discard((disk.target, number))

    def _put(self, disk: SpoolDisk, number: int) -> None:
        opening = self._point.opening
        with disk.body(number) as body:
            self._wire.put_segment(opening.vm, opening.point, disk.target, number, body)

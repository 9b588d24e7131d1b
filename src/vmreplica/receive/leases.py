"""Points that a primary reads for a while: held as they are until it lets go, or is not heard of any more."""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import PointId, VmId
from vmreplica.repository import Replica

_log: Final = structlog.get_logger(__name__)


class _Lease(NamedTuple):
    replica: Replica
    hold: str
    timer: threading.Timer


class Leases:
    """Holds with a limit on their time, one per point; none outlives the process. Thread-safe.

    Args:
        seconds: after which one ends that is not renewed.
        ended: called when one has ended: what waited for it may go on.
    """

    def __init__(self, seconds: float, ended: Callable[[VmId], None]) -> None:
        self._seconds = seconds
        self._ended = ended
        self._lock = threading.Lock()
        self._leases: dict[tuple[VmId, PointId], _Lease] = {}

    def renew(self, replica: Replica, point: PointId, reason: str) -> None:
        """Hold a point from now on for so many seconds.

        Raises:
            NotFound: ``point-unknown``.
        """
        place = (replica.record.vm, point)
        with self._lock:
            known = self._leases.pop(place, None)
            if known is not None:
                known.timer.cancel()
            # A replica that was dissolved and made anew has none of the old one's holds.
            same = known is not None and known.replica is replica
            hold = known.hold if known is not None and same else replica.hold(point, "verify", reason, lasting=False)
            timer = threading.Timer(self._seconds, self._expire, (place, hold))
            timer.daemon = True
            self._leases[place] = _Lease(replica, hold, timer)
            timer.start()

    def end(self, vm: VmId, point: PointId) -> None:
        """Hold a point no longer; again is harmless."""
        with self._lock:
            lease = self._leases.pop((vm, point), None)
        if lease is not None:
            lease.timer.cancel()
            self._release(vm, lease)

    def _expire(self, place: tuple[VmId, PointId], hold: str) -> None:
        with self._lock:
            lease = self._leases.get(place)
            if lease is None or lease.hold != hold or lease.timer is not threading.current_thread():
                return
            del self._leases[place]
        _log.info("a point is free again: nobody verifies it any more", vm=place[0], point=place[1])
        self._release(place[0], lease)

    def _release(self, vm: VmId, lease: _Lease) -> None:
        try:
            lease.replica.release(lease.hold)
        except VmReplicaError as error:
            _log.warning("a hold stays until the agent ends", vm=vm, why=error.message)
        self._ended(vm)

"""How fast this host sends: each VM's own limit, and one for all of them together, divided fairly among who sends."""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmreplica.model.ids import VmId
from vmreplica.model.rates import InForce, Limit, in_force, rate_at
from vmreplica.model.units import MiB
from vmreplica.peer.line import Halt, stopped
from vmreplica.ship.bucket import Bucket, fair_shares

#: Seconds between two looks at the rules: a change takes effect within it.
_LOOK: Final = 0.25
#: Seconds after its last request for bytes for which a VM keeps its share of the common rate.
_ACTIVE: Final = 1.0
#: Below this rate (bytes per second) one segment at a time is sent: more would only wait for each other, and take
#: the room that the replica has for segments under way.
_ONE_BY_ONE: Final = 4 * MiB


@dataclass(slots=True)
class _Sender:
    limit: Callable[[], Limit]
    bucket: Bucket
    asked: float


class Bandwidth:
    """Thread-safe; one for the host.

    Args:
        limit: for all VMs together.
        clock: monotonic seconds.
        wall: the present, aware, in the time zone whose hours count.
    """

    def __init__(
        self,
        limit: Limit,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC).astimezone(),
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._senders: dict[VmId, _Sender] = {}
        self._looked = float("-inf")

    @property
    def unlimited(self) -> bool:
        """Whether there is no common limit, at no time."""
        return self._limit.unlimited

    def in_force(self, own: Limit) -> InForce:
        """Tell the rate that a VM with such a limit can have now, and until when."""
        now = self._wall()
        found = (in_force(own, now), in_force(self._limit, now))
        rates = [each.rate for each in found if each.rate is not None]
        ends = [each.until for each in found if each.until is not None]
        return InForce(min(rates, default=None), min(ends, default=None))

    def throttle(
        self,
        vm: VmId,
        limit: Callable[[], Limit],
        sent: Callable[[int], None],
        held: Callable[[float], None] = lambda _since: None,
    ) -> "Throttle":
        """Give what paces a VM's segments.

        Args:
            vm: whose.
            limit: tells its limit of this moment.
            sent: told of the bytes of each slice that goes out.
            held: told since when (monotonic) nothing was let out until now.
        """
        return Throttle(self, vm, limit, sent, held)

    def take(self, vm: VmId, limit: Callable[[], Limit], most: int) -> tuple[int, float]:
        """Ask for bytes; gives how many may be sent, and if none the seconds after which to ask again."""
        with self._lock:
            now = self._clock()
            bucket = self._active(vm, limit, now)
            granted = bucket.take(most, now)
            return granted, 0.0 if granted else min(_LOOK, bucket.wait(most))

    def rate(self, vm: VmId, limit: Callable[[], Limit]) -> float | None:
        """Tell what a VM that sends may have at this moment, in bytes per second."""
        with self._lock:
            return self._active(vm, limit, self._clock()).rate

    def _active(self, vm: VmId, limit: Callable[[], Limit], now: float) -> Bucket:
        sender = self._senders.get(vm)
        if sender is None:
            sender = self._senders[vm] = _Sender(limit, Bucket(now), now)
            self._looked = float("-inf")
        sender.limit, sender.asked = limit, now
        if now - self._looked >= _LOOK:
            self._looked = now
            self._divide(now)
        return sender.bucket

    def _divide(self, now: float) -> None:
        for vm in [vm for vm, sender in self._senders.items() if sender.asked < now - _ACTIVE]:
            del self._senders[vm]
        wall = self._wall()
        own: dict[VmId, float | None] = {vm: rate_at(each.limit(), wall) for vm, each in self._senders.items()}
        for vm, share in fair_shares(rate_at(self._limit, wall), own).items():
            self._senders[vm].bucket.change(share, now)


class Throttle:
    """Paces the segments of one VM in one cycle; thread-safe. Made by ``Bandwidth.throttle``."""

    def __init__(
        self,
        bandwidth: Bandwidth,
        vm: VmId,
        limit: Callable[[], Limit],
        sent: Callable[[int], None],
        held: Callable[[float], None],
    ) -> None:
        self._bandwidth = bandwidth
        self._vm = vm
        self._limit = limit
        self._sent = sent
        self._held = held
        self._one = threading.Lock()

    def allow(self, most: int, halt: Halt) -> int:
        """Wait until at least one of so many bytes may be sent; tell how many.

        Raises:
            Conflict: ``cycle-stopped``.
        """
        while True:
            if halt.is_set():
                raise stopped()
            free = self._bandwidth.unlimited and self._limit().unlimited
            granted, wait = (most, 0.0) if free else self._bandwidth.take(self._vm, self._limit, most)
            if granted:
                self._sent(granted)
                return granted
            since = time.monotonic()
            halt.wait(wait)
            self._held(since)

    @contextlib.contextmanager
    def turn(self, halt: Halt) -> Iterator[None]:
        """Wait until a segment may begin: under a low rate, until the one before has ended.

        Raises:
            Conflict: ``cycle-stopped``.
        """
        rate = self._bandwidth.rate(self._vm, self._limit)
        if rate is None or rate >= _ONE_BY_ONE:
            yield
            return
        while not self._one.acquire(timeout=_LOOK):
            if halt.is_set():
                raise stopped()
        try:
            yield
        finally:
            self._one.release()

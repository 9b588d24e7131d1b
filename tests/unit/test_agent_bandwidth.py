"""Pacing with real threads and clocks: the rate is kept, changed while it runs, shared fairly, and left at once."""

import threading
import time
from collections.abc import Callable

import pytest

from vmreplica.agent.bandwidth import Bandwidth
from vmreplica.model.errors import Conflict
from vmreplica.model.rates import NO_LIMIT, Limit
from vmreplica.model.units import KiB, MiB
from vmreplica.peer.line import Halt

pytestmark = pytest.mark.seeding

ONE, OTHER = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"


class Sender:
    """Takes bytes as fast as it may, in threads, until it is halted."""

    def __init__(self, bandwidth: Bandwidth, vm: str, limit: Callable[[], Limit], threads: int = 2) -> None:
        self.sent = 0
        self.halt = Halt()
        self.codes: list[str] = []
        self._guard = threading.Lock()
        self._throttle = bandwidth.throttle(vm, limit, self._count)
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> float:
        """Halt, and tell the seconds until all threads have ended."""
        began = time.monotonic()
        self.halt.set()
        for thread in self._threads:
            thread.join(10)
        return time.monotonic() - began

    def _send(self) -> None:
        try:
            while True:
                self._throttle.allow(256 * KiB, self.halt)
        except Conflict as error:
            self.codes.append(error.code)

    def _count(self, size: int) -> None:
        with self._guard:
            self.sent += size


def rate_of(sender: Sender, seconds: float) -> float:
    """Measure what passes in so many seconds."""
    before, began = sender.sent, time.monotonic()
    time.sleep(seconds)
    return (sender.sent - before) / (time.monotonic() - began)


def test_a_limit_is_kept_and_a_change_takes_effect_within_a_second() -> None:
    limits = [Limit(rate=MiB)]
    sender = Sender(Bandwidth(NO_LIMIT), ONE, lambda: limits[0])
    try:
        time.sleep(0.5)
        assert rate_of(sender, 2) == pytest.approx(MiB, rel=0.2)
        limits[0] = Limit(rate=8 * MiB)
        time.sleep(1)
        assert rate_of(sender, 1.5) == pytest.approx(8 * MiB, rel=0.2)
        limits[0] = Limit(rate=64 * KiB)
        time.sleep(1)
        assert rate_of(sender, 2) == pytest.approx(64 * KiB, rel=0.3)
    finally:
        assert sender.stop() < 1
    assert sender.codes == ["cycle-stopped"] * 2


def test_the_common_rate_is_shared_fairly_and_whole() -> None:
    bandwidth = Bandwidth(Limit(rate=4 * MiB))
    one = Sender(bandwidth, ONE, lambda: NO_LIMIT, threads=3)
    other = Sender(bandwidth, OTHER, lambda: Limit(rate=MiB), threads=1)
    try:
        time.sleep(1)
        before = other.sent, time.monotonic()
        assert rate_of(one, 2) == pytest.approx(3 * MiB, rel=0.2)
        assert (other.sent - before[0]) / (time.monotonic() - before[1]) == pytest.approx(MiB, rel=0.2)
        other.stop()
        time.sleep(2)
        assert rate_of(one, 2) == pytest.approx(4 * MiB, rel=0.2), "what one leaves is the other's"
    finally:
        other.stop()
        one.stop()


def test_under_a_low_rate_segments_go_one_by_one_and_who_waits_is_let_go() -> None:
    throttle = Bandwidth(NO_LIMIT).throttle(ONE, lambda: Limit(rate=MiB), lambda _size: None)
    halt = Halt()
    waited: list[str] = []

    def wait() -> None:
        try:
            with throttle.turn(halt):
                waited.append("went")
        except Conflict as error:
            waited.append(error.code)

    with throttle.turn(Halt()):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        assert not waited
        halt.set()
        thread.join(5)
    assert waited == ["cycle-stopped"]
    fast = Bandwidth(NO_LIMIT).throttle(ONE, lambda: NO_LIMIT, lambda _size: None)
    with fast.turn(Halt()), fast.turn(Halt()):
        pass

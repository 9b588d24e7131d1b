"""A caller's use of the line: segments that are paced, and requests that end at once when their caller is halted."""

# ruff: noqa: D102 - the methods are those of PeerService, described there

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peer_kit import CLOSING, OFFER, POINT, Host, KeepingService
from point_kit import VM

from vmreplica.model.body import Buffers
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.point import PointClosing, PointSummary
from vmreplica.model.units import KiB, MiB
from vmreplica.peer.client import PeerClient
from vmreplica.peer.line import Halt, Line

pytestmark = pytest.mark.seeding


class SlowService(KeepingService):
    """Takes its time to publish."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.let_go = threading.Event()

    def complete(self, peer: str, vm: str, point: str, closing: PointClosing) -> PointSummary:
        self.let_go.wait(30)
        return super().complete(peer, vm, point, closing)


class Slices:
    """Grants slices of a fixed size, and remembers them; an event may hold it up."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted: list[int] = []
        self.hold: int | None = None

    def allow(self, most: int, halt: Halt) -> int:
        if self.hold is not None and len(self.granted) >= self.hold:
            halt.wait(30)
            raise Conflict("cycle-stopped", "stopped")
        self.granted.append(min(most, self.size))
        return self.granted[-1]

    def turn(self, _halt: Halt) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.fixture
def service() -> type[KeepingService]:
    return SlowService


@pytest.fixture
def client(tmp_path: Path, alpha: Host) -> Iterator[PeerClient]:
    beta = Host(tmp_path / "beta", "beta")
    beta.joins(alpha)
    with beta.client_of(alpha) as client:
        client.offer(VM, OFFER)
        yield client
        alpha.service.let_go.set()


def halted(act: Callable[[], object], halt: Halt, after: float = 0.5) -> tuple[str, float]:
    """Halt an act a while after its beginning; tell how it ended, and how many seconds later."""
    ended: list[str] = []

    def run() -> None:
        try:
            act()
            ended.append("done")
        except VmReplicaError as error:
            ended.append(error.code)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(after)
    began = time.monotonic()
    halt.set()
    thread.join(20)
    return ended[0], time.monotonic() - began


def test_a_segment_goes_in_the_slices_that_its_pace_grants(alpha: Host, client: PeerClient) -> None:
    pace, body = Slices(10_000), os.urandom(256 * KiB + 5)
    client.on(Line(Halt(), pace)).put_segment(VM, POINT, "vda", 0, Buffers(body[:7], body[7:]))
    assert list(alpha.service.segments.values()) == [body]
    assert sum(pace.granted) == len(body)
    assert max(pace.granted) == 10_000
    client.on(Line(Halt(), pace)).position(VM)
    assert sum(pace.granted) == len(body), "what is no segment is not held back"


def test_a_halt_within_a_segment_ends_it_at_once_and_the_next_one_gets_through(alpha: Host, client: PeerClient) -> None:
    pace, halt = Slices(10_000), Halt()
    pace.hold = 3
    code, took = halted(lambda: client.on(Line(halt, pace)).put_segment(VM, POINT, "vda", 0, Buffers(bytes(MiB))), halt)
    assert code == "cycle-stopped"
    assert took < 2
    assert not alpha.service.segments
    client.put_segment(VM, POINT, "vda", 0, Buffers(bytes(MiB)))
    assert len(alpha.service.segments) == 1


def test_a_halt_ends_the_wait_for_an_answer_at_once(client: PeerClient) -> None:
    halt = Halt()
    code, took = halted(lambda: client.on(Line(halt)).complete(VM, POINT, CLOSING), halt)
    assert code == "cycle-stopped"
    assert took < 2
    with pytest.raises(Conflict):
        client.on(Line(halt)).position(VM)
    assert client.position(VM).vm == VM, "others are not concerned"


def test_what_was_to_end_with_a_halt_is_not_touched_after_its_block() -> None:
    halt, ended = Halt(), []
    with halt.ending(lambda: ended.append(1)):
        pass
    halt.set()
    assert not ended
    with halt.ending(lambda: ended.append(2)):
        assert ended == [2], "set already: at once"

"""Who may do what to a replica, and when."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from point_kit import OTHER_VM, VM
from repository_kit import OWNER, STRANGER, Primary, noise, offer, open_repository

from vmreplica.model.errors import Conflict, Refused
from vmreplica.model.ids import HostId, VmId
from vmreplica.model.point import PointClosing, PointSummary
from vmreplica.model.states import Event
from vmreplica.peer.service import PeerService
from vmreplica.peer.wire import Hello, RunsHere
from vmreplica.receive import Receiver
from vmreplica.repository import FailoverRecord, Repository

pytestmark = pytest.mark.main_job

POINT = "20260101T000000Z-00000000"
NO_BODY = memoryview(b"")


def _hello() -> Hello:
    return Hello(name="replica", host_id=OWNER, version="1", now=dt.datetime.now(dt.UTC), free_bytes=1)


def _runs(_peer: HostId, vm: VmId) -> RunsHere:
    return RunsHere(vm=vm, runs=True, epoch=3)


class Host:
    """A replica host with one relationship, as its peers see it."""

    def __init__(self, store: Path) -> None:
        self.repository: Repository = open_repository(store)
        self.published: list[PointSummary] = []
        self.service: PeerService = Receiver(
            self.repository,
            hello=_hello,
            runs_here=_runs,
            on_published=lambda _vm, summary: self.published.append(summary),
        )
        self.service.offer(OWNER, VM, offer())
        self.primary = Primary()

    def send(self, *, epoch: int = 0, keep: int = 3) -> PointSummary:
        """Publish a point through the service."""
        opening = self.primary.opening(epoch=epoch, keep=keep)
        segments, closing = self.primary.write(opening, {"vda": {1: noise(1)}})
        self.service.open_point(OWNER, opening)
        for number, body in enumerate(segments["vda"]):
            self.service.put_segment(OWNER, VM, opening.point, "vda", number, memoryview(body))
        summary = self.service.complete(OWNER, VM, opening.point, closing)
        self.primary.latest = opening.point
        return summary


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


CALLS: dict[str, Callable[[Host, HostId, VmId], object]] = {
    "position": lambda host, peer, vm: host.service.position(peer, vm),
    "points": lambda host, peer, vm: host.service.points(peer, vm),
    "open": lambda host, peer, vm: host.service.open_point(peer, host.primary.opening().model_copy(update={"vm": vm})),
    "put": lambda host, peer, vm: host.service.put_segment(peer, vm, POINT, "vda", 0, NO_BODY),
    "complete": lambda host, peer, vm: host.service.complete(peer, vm, POINT, _closing(host)),
    "fingerprint": lambda host, peer, vm: host.service.fingerprint(peer, vm, POINT, "vda", 1, 0, 1),
    "abandon": lambda host, peer, vm: host.service.abandon(peer, vm, POINT),
}


def _closing(host: Host) -> PointClosing:
    return host.primary.write(host.primary.opening(), {})[1]


@pytest.mark.parametrize("call", CALLS)
def test_a_foreign_vm_and_an_unknown_one_are_told_apart_by_nothing(call: str, host: Host) -> None:
    host.send()
    with pytest.raises(Refused) as foreign:
        CALLS[call](host, STRANGER, VM)
    with pytest.raises(Refused) as unknown:
        CALLS[call](host, STRANGER, OTHER_VM)
    assert foreign.value.problem() == unknown.value.problem().model_copy(
        update={"message": unknown.value.message.replace(OTHER_VM, VM)}
    )
    assert foreign.value.code == "not-your-replica"


@pytest.mark.parametrize("delete", [True, False])
def test_a_stranger_removes_nothing_and_learns_nothing(delete: bool, host: Host) -> None:
    host.send()
    host.service.remove(STRANGER, VM, delete_copy=delete)
    host.service.remove(STRANGER, OTHER_VM, delete_copy=delete)
    assert len(host.service.points(OWNER, VM).points) == 1
    assert host.service.position(OWNER, VM).state == "replicating"


def test_a_stranger_cannot_take_a_replica_over(host: Host) -> None:
    with pytest.raises(Refused) as caught:
        host.service.offer(STRANGER, VM, offer(epoch=99))
    assert caught.value.code == "replica-of-another-host"
    assert host.service.position(OWNER, VM).epoch == 0


def test_a_point_comes_in_and_is_announced(host: Host) -> None:
    summary = host.send()
    assert host.published == [summary]
    assert host.service.points(OWNER, VM).points == (summary,)
    assert host.service.position(OWNER, VM).latest == summary
    assert host.service.hello().name == "replica"
    assert host.service.runs_here(OWNER, VM).runs


def test_the_policy_comes_with_offers_and_openings(host: Host) -> None:
    host.service.offer(OWNER, VM, offer(keep=9))
    assert host.repository.replica(VM).record.keep.last == 9
    host.send(keep=5)
    assert host.repository.replica(VM).record.keep.last == 5


def test_a_paused_replica_takes_nothing_until_it_is_resumed(host: Host) -> None:
    opening = host.primary.opening()
    segments, closing = host.primary.write(opening, {"vda": {1: noise(1)}})
    host.service.open_point(OWNER, opening)
    assert host.service.offer(OWNER, VM, offer(paused=True)).state == "paused"
    assert host.service.offer(OWNER, VM, offer(paused=True)).state == "paused"
    for refused in (
        lambda: host.service.open_point(OWNER, opening),
        lambda: host.service.put_segment(OWNER, VM, opening.point, "vda", 0, memoryview(segments["vda"][0])),
        lambda: host.service.complete(OWNER, VM, opening.point, closing),
    ):
        with pytest.raises(Conflict) as caught:
            refused()
        assert caught.value.code == "replica-not-receiving"
    assert host.service.offer(OWNER, VM, offer()).state == "replicating"
    host.service.put_segment(OWNER, VM, opening.point, "vda", 0, memoryview(segments["vda"][0]))
    assert host.service.complete(OWNER, VM, opening.point, closing).point == opening.point


def test_a_failed_over_replica_takes_nothing_and_a_stale_primary_is_told(host: Host) -> None:
    summary = host.send()
    replica = host.repository.replica(VM)
    replica.update(failover=FailoverRecord(point=summary.point, hold="0" * 16, started=True))
    replica.move(Event.FAIL_OVER)
    with pytest.raises(Conflict) as caught:
        host.service.open_point(OWNER, host.primary.opening())
    assert caught.value.code == "replica-not-receiving"
    with pytest.raises(Conflict) as caught:
        host.service.offer(OWNER, VM, offer())
    assert caught.value.code == "replica-not-receiving"
    replica.update(epoch=1)
    for stale in (
        lambda: host.service.open_point(OWNER, host.primary.opening()),
        lambda: host.service.offer(OWNER, VM, offer()),
    ):
        with pytest.raises(Conflict) as caught:
            stale()
        assert caught.value.code == "stale-epoch"
    assert host.service.position(OWNER, VM).epoch == 1
    with pytest.raises(Conflict, match="runs here"):
        host.service.remove(OWNER, VM, delete_copy=True)


def test_a_point_opened_before_a_failover_is_not_published_after_it(host: Host) -> None:
    host.send()
    opening = host.primary.opening()
    _, closing = host.primary.write(opening, {})
    host.service.open_point(OWNER, opening)
    host.repository.replica(VM).update(epoch=1)
    with pytest.raises(Conflict) as caught:
        host.service.complete(OWNER, VM, opening.point, closing)
    assert caught.value.code == "stale-epoch"
    assert host.service.position(OWNER, VM).incoming is None


def test_a_higher_epoch_of_the_primary_is_taken_over(host: Host) -> None:
    host.send(epoch=2)
    assert host.service.position(OWNER, VM).epoch == 2
    with pytest.raises(Conflict):
        host.send(epoch=1)


def test_the_owner_removes_the_relationship_and_chooses_what_becomes_of_the_copy(host: Host) -> None:
    host.send()
    host.service.open_point(OWNER, host.primary.opening())
    for _ in range(2):
        host.service.remove(OWNER, VM, delete_copy=False)
    position = host.service.position(OWNER, VM)
    assert (position.state, position.points, position.incoming) == ("paused", 1, None)
    for _ in range(2):
        host.service.remove(OWNER, VM, delete_copy=True)
    assert host.repository.replicas() == []
    with pytest.raises(Refused):
        host.service.position(OWNER, VM)

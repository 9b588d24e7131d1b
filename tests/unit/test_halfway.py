"""Failovers and tests that could not be taken back at once: none stays halfway, none ends the upkeep of others."""

import contextlib
import datetime as dt
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from point_kit import OTHER_VM, VM
from repository_kit import OWNER, Primary, fill, offer, open_repository

from vmreplica.agent.halfway import Halfway, attempt
from vmreplica.agent.journal import Journal
from vmreplica.agent.upkeep import Upkeep
from vmreplica.failover.execute import undo
from vmreplica.failover.taking_back import plan_cancel, what_to_cancel
from vmreplica.failover.tests import FailoverTests
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.views import DomainBrief
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Conflict, Internal, Unreachable
from vmreplica.model.states import Event, State
from vmreplica.repository import FailoverRecord, FailoverTestRecord, Replica, Repository

pytestmark = pytest.mark.failover

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


class Host(Hypervisor):
    """A libvirt that is away, or that is there again and has no VM."""

    def __init__(self, place: Path) -> None:
        super().__init__(f"qemu+unix:///system?socket={place}/none", place / "jobs")
        self.away = True
        self.broken: OSError | None = None

    def domains(self) -> list[DomainBrief]:
        """List all."""
        if self.broken is not None:
            raise self.broken
        return super().domains() if self.away else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return open_repository(tmp_path / "store")


@pytest.fixture
def replica(repository: Repository) -> Replica:
    made = repository.create(VM, OWNER, offer())
    fill(made, Primary(), 2)
    return made


def fail_over(replica: Replica, *, started: bool = True) -> None:
    """Come so far as a failover does before its guest runs."""
    point = replica.points()[0].point
    hold = replica.hold(point, "failover", "it runs from this point")
    replica.update(failover=FailoverRecord(point=point, hold=hold, started=started, since=NOW))
    replica.move(Event.FAIL_OVER)
    replica.run_dir.mkdir()
    (replica.run_dir / "vda.qcow2").write_bytes(b"layer")


def add_test(replica: Replica, number: int = 0, *, until: dt.datetime | None = NOW) -> Path:
    test = FailoverTestRecord(
        id=f"{number:08x}", vm=OTHER_VM, name="web-test", point=replica.points()[0].point, network=None, since=NOW,
        until=until, started=True,
    )  # fmt: skip
    replica.update(tests=(*replica.record.tests, test))
    directory = replica.dir / "tests" / test.id
    directory.mkdir(parents=True)
    (directory / "vda.qcow2").write_bytes(b"layer")
    return directory


@contextlib.contextmanager
def upkeep(repository: Repository, host: Host, acting: threading.Lock, place: Path) -> Iterator[Upkeep]:
    journal = Journal(place / "journal.db")
    settle = Halfway(host, acting).settle
    running = Upkeep(repository, FailoverTests(host), journal, settle, every=0.05)
    running.start()
    try:
        yield running
    finally:
        running.stop()
        journal.close()


def holds(replica: Replica) -> list[int]:
    return [len(point.holds) for point in replica.points()]


def test_what_could_not_be_taken_back_is_taken_back_when_it_is_asked_for_again(replica: Replica, host: Host) -> None:
    fail_over(replica)
    replica.move(Event.STARTED)
    with pytest.raises(Unreachable):
        undo(replica, host)
    record = replica.record
    assert (record.state, holds(replica)) == (State.CANCELLING, [1, 0])
    with pytest.raises(Conflict) as refused:
        replica.move(Event.FAIL_OVER)
    assert refused.value.hint == "possible from here: vmreplica failover web --cancel"

    plan = plan_cancel(record, replica.points(), tests_only=False, now=NOW + dt.timedelta(hours=1), written=5)
    assert (plan.kind, plan.loses_seconds, plan.loses_bytes) == ("cancel", 3600, 5)
    host.away = False
    assert what_to_cancel(record, tests_only=False) == "unplanned"
    undo(replica, host)
    assert (replica.record.state, replica.record.failover, holds(replica)) == (State.REPLICATING, None, [0, 0])
    assert not replica.run_dir.exists()


def test_an_act_under_way_is_not_taken_back_in_its_midst(replica: Replica) -> None:
    fail_over(replica, started=False)
    with pytest.raises(Conflict) as refused:
        what_to_cancel(replica.record, tests_only=False, acting=True)
    assert (refused.value.code, refused.value.kind) == ("failover-under-way", "transient")
    plan = plan_cancel(replica.record, replica.points(), tests_only=False, now=NOW, written=5)
    assert (plan.loses_seconds, plan.loses_bytes) == (0, 0), "its guest has run nothing yet"


def test_the_upkeep_goes_on_trying_and_leaves_acts_under_way_alone(
    repository: Repository, replica: Replica, host: Host, tmp_path: Path
) -> None:
    fail_over(replica, started=False)
    with pytest.raises(Unreachable):
        undo(replica, host)
    acting = threading.Lock()
    with upkeep(repository, host, acting, tmp_path):
        with acting:
            host.away = False
            assert not until(lambda: replica.record.state != State.CANCELLING, 0.5)
        assert until(lambda: replica.record.state == State.REPLICATING, 10)
    assert not replica.run_dir.exists()


def test_the_upkeep_finishes_a_failover_whose_guest_runs(
    repository: Repository, replica: Replica, host: Host, tmp_path: Path
) -> None:
    fail_over(replica)
    with upkeep(repository, host, threading.Lock(), tmp_path):
        assert not until(lambda: replica.record.state != State.FAILING_OVER, 0.5)
        host.away = False
        assert until(lambda: replica.record.state == State.FAILED_OVER, 10)
    assert replica.run_dir.exists(), "what its guest wrote is not thrown away"


def test_an_error_of_any_kind_does_not_end_the_upkeep(
    repository: Repository, replica: Replica, host: Host, tmp_path: Path
) -> None:
    directory = add_test(replica)
    host.away, host.broken = False, OSError(5, "Input/output error")
    with upkeep(repository, host, threading.Lock(), tmp_path):
        assert not until(lambda: not replica.record.tests, 0.5)
        host.broken = None
        assert until(lambda: not replica.record.tests, 10)
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems")
def test_files_of_a_test_that_could_not_be_removed_are_removed_later(replica: Replica, host: Host) -> None:
    busy = add_test(replica) / "busy"
    busy.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(busy)], check=False, timeout=60).returncode:
        pytest.skip("nothing can be mounted here")
    host.away = False
    tests = FailoverTests(host)
    try:
        for _ in range(2):
            with pytest.raises(Internal, match="store cannot be used") as caught:
                tests.expire(replica, NOW)
            assert caught.value.code == "store-failed"
            assert len(replica.record.tests) == 1, "it is known until all of it is gone"
    finally:
        (mounted,) = (replica.dir / "tests").glob("**/busy")
        subprocess.run(["umount", str(mounted)], check=True, timeout=60)
    assert tests.expire(replica, NOW) == ("web-test",)
    assert list((replica.dir / "tests").iterdir()) == []


def test_what_a_test_runs_from_is_held_again_though_libvirt_is_away(replica: Replica, host: Host) -> None:
    add_test(replica, 1, until=None)
    add_test(replica, 2, until=None)
    tests = FailoverTests(host)
    with pytest.raises(Unreachable):
        tests.recover(replica)
    assert holds(replica) == [2, 0]


def test_a_step_that_fails_is_in_nobodys_way(replica: Replica, host: Host) -> None:
    fail_over(replica)

    def spoiled(_replica: Replica) -> None:
        raise OSError(5, "Input/output error")

    attempt("a failover is left halfway", replica, spoiled)
    attempt("a failover is left halfway", replica, Halfway(host, threading.Lock()).settle)
    assert replica.record.state == State.FAILING_OVER

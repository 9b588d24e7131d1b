"""The keeper of backup jobs on a real libvirt: a job outlives its cycle only as long as its point is not read."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from libvirt_kit import Guest
from point_kit import make_opening

from vmreplica.agent.facts import Stages
from vmreplica.agent.journal import Journal
from vmreplica.agent.keeper import Keeper, abandon
from vmreplica.agent.quiescing import Quiescer
from vmreplica.agent.rest import RestBook
from vmreplica.agent.transfer import TransferLimits
from vmreplica.fingerprint import FingerprintStore
from vmreplica.hypervisor import Hypervisor
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Unreachable
from vmreplica.model.ids import VmId
from vmreplica.model.units import GiB, MiB
from vmreplica.spool import Spool

pytestmark = pytest.mark.main_job

POINT = "20260101T000000Z-00000001"
CHECKPOINT = f"vmreplica-0123abcd-{POINT}"


class Failing:
    """A real hypervisor whose first so many ends of jobs fail, and others wait until they may."""

    def __init__(self, real: Hypervisor, failures: int = 0) -> None:
        self._real = real
        self.failures = failures
        self.asked = threading.Event()
        self.may = threading.Event()
        self.may.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def end_backup(self, vm: VmId) -> None:
        """End it, or not."""
        self.asked.set()
        if self.failures > 0:
            self.failures -= 1
            raise Unreachable("libvirt-unreachable", "libvirt is away")
        assert self.may.wait(30)
        self._real.end_backup(vm)


@pytest.fixture
def failing(hypervisor: Hypervisor) -> Failing:
    return Failing(hypervisor)


@pytest.fixture
def stages(failing: Failing, home: Path) -> Iterator[Stages]:
    journal = Journal(home / "journal.db")
    yield Stages(
        hypervisor=failing,  # type: ignore[arg-type]
        spool=Spool(home / "spool", GiB),
        spool_dir=home / "spool",
        fingerprints=FingerprintStore(home / "fingerprints"),
        rest=RestBook(home / "rest"),
        quiescer=Quiescer(home, failing, journal, 10),  # type: ignore[arg-type]
        limits=TransferLimits(workers=1, connections=1, level=1, scratch_dir=home, scratch_cap=64 * MiB, min_free=0),
    )
    journal.close()


@pytest.fixture
def new_keeper(stages: Stages) -> Iterator[Callable[[], Keeper]]:
    """Makes keepers that watch; stopped after the test."""
    made: list[Keeper] = []

    def make() -> Keeper:
        made.append(Keeper(stages, 3600))
        made[-1].start()
        return made[-1]

    yield make
    for keeper in made:
        keeper.stop()


def begin(stages: Stages, guest: Guest, *, complete: bool) -> None:
    """Begin a job and its point as a cycle does."""
    point = stages.spool.create(make_opening(POINT, {"vda": 64 * MiB}, vm=guest.vm, checkpoint=CHECKPOINT))
    stages.hypervisor.begin_backup(guest.vm, checkpoint=CHECKPOINT, targets=["vda"])
    if complete:
        point.finish(0)


def runs(stages: Stages, guest: Guest) -> bool:
    return stages.hypervisor.job_alive(guest.vm, CHECKPOINT)


def test_the_job_of_a_point_that_was_read_is_ended_although_libvirt_fails_at_first(
    stages: Stages, failing: Failing, guest: Guest, new_keeper: Callable[[], Keeper]
) -> None:
    begin(stages, guest, complete=True)
    failing.failures = 1
    new_keeper().hold(guest.vm)
    assert until(lambda: not runs(stages, guest), 20)
    point = stages.spool.point(guest.vm)
    assert point is not None, "what was read waits for the replica"
    assert stages.hypervisor.checkpoints(guest.vm) == [CHECKPOINT]


def test_a_job_without_a_point_is_ended(stages: Stages, guest: Guest, new_keeper: Callable[[], Keeper]) -> None:
    begin(stages, guest, complete=False)
    point = stages.spool.point(guest.vm)
    assert point is not None
    point.discard()
    new_keeper().hold(guest.vm)
    assert until(lambda: not runs(stages, guest), 20)


def test_the_job_of_a_point_that_is_still_read_is_kept(
    stages: Stages, failing: Failing, guest: Guest, new_keeper: Callable[[], Keeper]
) -> None:
    begin(stages, guest, complete=False)
    new_keeper().hold(guest.vm)
    assert not failing.asked.wait(2)
    assert runs(stages, guest)
    stages.hypervisor.end_backup(guest.vm)


def test_a_cycle_begins_only_when_no_job_of_its_vm_is_being_ended(
    stages: Stages, failing: Failing, guest: Guest, new_keeper: Callable[[], Keeper]
) -> None:
    begin(stages, guest, complete=True)
    keeper = new_keeper()
    failing.may.clear()
    keeper.hold(guest.vm)
    assert failing.asked.wait(10)
    released = threading.Thread(target=keeper.release, args=(guest.vm,))
    released.start()
    released.join(0.5)
    assert released.is_alive()
    keeper.release("00000000-0000-0000-0000-000000000000")
    failing.may.set()
    released.join(10)
    assert not released.is_alive()
    assert not runs(stages, guest)


def test_a_keeper_that_stops_tries_once_more(
    stages: Stages, failing: Failing, guest: Guest, new_keeper: Callable[[], Keeper]
) -> None:
    begin(stages, guest, complete=True)
    failing.failures = 1
    keeper = new_keeper()
    keeper.hold(guest.vm)
    assert until(lambda: failing.failures == 0, 10)
    keeper.stop()
    assert not runs(stages, guest)


def test_a_point_that_is_given_up_as_it_begins_leaves_no_job(
    stages: Stages, failing: Failing, guest: Guest, new_keeper: Callable[[], Keeper]
) -> None:
    begin(stages, guest, complete=False)
    point = stages.spool.point(guest.vm)
    assert point is not None
    abandon(stages, point)
    assert not runs(stages, guest)
    assert stages.spool.point(guest.vm) is None

    stages.hypervisor.delete_checkpoint(guest.vm, CHECKPOINT)
    begin(stages, guest, complete=False)
    point = stages.spool.point(guest.vm)
    assert point is not None
    failing.failures = 1
    abandon(stages, point)
    assert runs(stages, guest)
    new_keeper().hold(guest.vm)
    assert until(lambda: not runs(stages, guest), 20), "libvirt is back"

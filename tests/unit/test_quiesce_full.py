"""A full file system costs a point at most its mark as application-consistent, never the point itself."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_kit import small_file_system
from point_kit import VM
from spool_kit import opening

from vmreplica.agent.frozen import Freeze
from vmreplica.agent.journal import Journal
from vmreplica.agent.quiescing import Attempt, Quiescer
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.policy import Policy
from vmreplica.model.quiesce import AppConsistent
from vmreplica.spool import Spool

pytestmark = pytest.mark.points


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with small_file_system(tmp_path, 2) as mounted:
        yield mounted


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """One that is asked for nothing here."""
    opened = Hypervisor("qemu:///system", tmp_path / "run", tmp_path / "hypervisor")
    yield opened
    opened.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


def use_up(place: Path) -> Path:
    ballast = place / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as fh:
        while True:
            fh.write(bytes(4096))
    return ballast


def unable() -> Freeze:
    raise AssertionError("no guest is frozen here")


def quiesced() -> Attempt:
    attempt = Attempt(unable)
    attempt.result = attempt.result.model_copy(update={"failure": None, "code": ""})
    return attempt


def test_a_full_spool_leaves_a_point_crash_consistent(
    tmp_path: Path, small_fs: Path, hypervisor: Hypervisor, journal: Journal
) -> None:
    quiescer = Quiescer(tmp_path / "state", hypervisor, journal, 10)
    spool = Spool(small_fs / "spool", 1 << 20)
    point, attempt = spool.create(opening()), quiesced()
    use_up(small_fs)
    quiescer.mark(point, attempt)
    assert point.opening.consistency == "crash"
    assert (attempt.consistency, attempt.result.code) == ("crash", "no-space")
    again = Spool(small_fs / "spool", 1 << 20).point(VM)
    assert again is not None
    assert again.opening == point.opening


def test_a_full_state_directory_costs_neither_the_mark_nor_the_memory_of_a_try(
    tmp_path: Path, small_fs: Path, hypervisor: Hypervisor, journal: Journal
) -> None:
    quiescer = Quiescer(small_fs, hypervisor, journal, 10)
    point = Spool(tmp_path / "spool", 1 << 20).create(opening())
    policy = Policy(replica="0123456789abcdef0123456789abcdef", interval=300, app_consistent=AppConsistent(every=3600))
    ballast = use_up(small_fs)
    quiescer.mark(point, quiesced())
    assert point.opening.consistency == "application"
    failed = Attempt(unable)
    failed.fail("guest-agent-absent", "no guest agent is connected in web")
    quiescer.tried(VM, failed)
    assert quiescer.facts(VM, policy).failures == 1, "kept in memory"
    quiescer.published(point.opening)
    ballast.unlink()
    quiescer.tried(VM, failed)
    assert Quiescer(small_fs, hypervisor, journal, 10).facts(VM, policy).failures == 2, (
        "written as soon as there is room"
    )

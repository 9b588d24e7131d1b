"""libvirtd restarted, hanging and gone: guests and jobs live on, callers get an answer in time."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from libvirt_kit import Guest, PrivateLibvirtd

from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.connection import Connection
from vmreplica.model.errors import TimedOut, Unreachable

pytestmark = pytest.mark.main_job


def name(number: int) -> str:
    return f"vmreplica-0123abcd-20260101T000000Z-{number:08x}"


@pytest.fixture
def connection(libvirtd: PrivateLibvirtd) -> Iterator[Connection]:
    opened = Connection(libvirtd.uri, lambda _raw: None)
    yield opened
    opened.close()


def test_a_job_survives_a_restart_of_libvirtd_and_is_ended_through_a_new_connection(
    libvirtd: PrivateLibvirtd, hypervisor: Hypervisor, guest: Guest, home: Path
) -> None:
    job = hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda"])
    libvirtd.kill()
    libvirtd.start()
    assert job.alive()
    found = hypervisor.attach_backup(guest.vm, name(1))
    assert found is not None
    assert found.exports == job.exports
    job.end()
    assert not job.alive()
    assert [path for path in (home / "run").rglob("*") if not path.is_dir()] == []
    hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda"]).end()
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert hypervisor.checkpoints(guest.vm) == [name(2)]


def test_a_call_waits_for_a_restarting_libvirtd(libvirtd: PrivateLibvirtd, hypervisor: Hypervisor) -> None:
    hypervisor.domains()
    libvirtd.kill()
    restart = threading.Timer(1.0, libvirtd.start)
    restart.start()
    try:
        hypervisor.domains()
    finally:
        restart.join()


def test_events_are_heard_again_after_a_restart(
    libvirtd: PrivateLibvirtd, hypervisor: Hypervisor, guest: Guest
) -> None:
    heard = threading.Event()
    hypervisor.watch(lambda vm, event: heard.set() if (vm, event) == (guest.vm, "resumed") else None)
    libvirtd.kill()
    libvirtd.start()
    hypervisor.domains()
    guest.virsh("resume", guest.name)
    assert heard.wait(10)


def test_watching_may_begin_before_libvirtd_is_there(home: Path) -> None:
    hypervisor = Hypervisor(f"qemu:///system?socket={home}/nobody", home / "run")
    hypervisor.watch(lambda _vm, _event: None)()


def test_an_absent_libvirtd_is_unreachable_at_once_with_the_next_command(home: Path) -> None:
    hypervisor = Hypervisor(f"qemu:///system?socket={home}/nobody", home / "run")
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        hypervisor.domains()
    assert time.monotonic() - began < 5
    assert caught.value.code == "libvirt-gone"
    assert "systemctl status" in caught.value.hint


def test_a_hanging_libvirtd_costs_the_time_limit_and_no_more(libvirtd: PrivateLibvirtd, connection: Connection) -> None:
    assert connection.call("count the VMs", lambda raw: raw.isAlive(), repeatable=True)
    libvirtd.freeze(frozen=True)
    try:
        began = time.monotonic()
        with pytest.raises(TimedOut, match="count the VMs") as caught:
            connection.call("count the VMs", lambda raw: len(raw.listAllDomains()), repeatable=True, limit=0.5)
        assert time.monotonic() - began < 5
    finally:
        libvirtd.freeze(frozen=False)
    assert caught.value.code == "libvirt-timeout"
    assert connection.call("count the VMs", lambda raw: len(raw.listAllDomains())) >= 0


def test_a_result_that_comes_too_late_is_undone(libvirtd: PrivateLibvirtd, connection: Connection) -> None:
    connection.call("connect", lambda raw: raw.isAlive())
    undone: list[int] = []
    came = threading.Event()

    def undo(result: int) -> None:
        undone.append(result)
        came.set()

    libvirtd.freeze(frozen=True)
    try:
        with pytest.raises(TimedOut):
            connection.call("list", lambda raw: len(raw.listAllDomains()), limit=0.3, if_late=undo)
        assert not undone
    finally:
        libvirtd.freeze(frozen=False)
    assert came.wait(10)
    assert len(undone) == 1


def test_an_act_that_must_not_be_repeated_is_not(libvirtd: PrivateLibvirtd, connection: Connection) -> None:
    calls: list[int] = []

    def act(raw: libvirt.virConnect) -> int:
        calls.append(1)
        libvirtd.kill()
        return len(raw.listAllDomains())

    try:
        with pytest.raises(Unreachable) as caught:
            connection.call("begin something", act)
    finally:
        libvirtd.start()
    assert caught.value.code == "libvirt-gone"
    assert len(calls) == 1


def test_an_act_that_may_be_repeated_is_repeated_once(libvirtd: PrivateLibvirtd, connection: Connection) -> None:
    calls: list[int] = []

    def act(raw: libvirt.virConnect) -> int:
        calls.append(1)
        if len(calls) == 1:
            libvirtd.kill()
            libvirtd.start()
        return len(raw.listAllDomains())

    assert connection.call("list", act, repeatable=True) >= 0
    assert len(calls) == 2

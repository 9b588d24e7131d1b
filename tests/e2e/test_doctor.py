"""`vmreplica doctor` on hosts of the lab: what is in order is said to be, what is broken is named with its remedy."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from job_kit import Blank, Document, NewBlank, enable, refusal

from vmreplica.cli.doctor import PROBLEM_EXIT
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.seeding

#: What depends on the machine that the lab runs on: it may be small, and nobody may keep its clock.
SURROUNDINGS = {
    "clock-not-synchronised", "space-low", "scratch-beside-images", "peer-store-low", "version-untested",
    "version-known-bad", "image-space-low",
}  # fmt: skip
STRAY = "vmreplica-00000000-20261122T100000Z-00000001"


def examine(host: Host, *words: str, leftovers: str = "") -> tuple[int, dict[str, Document]]:
    """Run doctor; gives its exit code and what is not in order, by code.

    Other tests may have left something on the lab: of leftovers only those count whose remedy names a text.
    """
    done = host.vmreplica("doctor", *words, "--json", check=False)
    report = json.loads(done.stdout)
    assert "findings" in report, done.stdout
    bad = [finding for finding in report["findings"] if finding["severity"] != "ok"]
    for finding in bad:
        assert finding["remedy"] or finding["severity"] == "info", finding
    counted = [f for f in bad if f["group"] != "leftovers" or (leftovers and leftovers in f["remedy"])]
    return done.returncode, {finding["code"]: finding for finding in counted if finding["code"] not in SURROUNDINGS}


@contextmanager
def full_file_system(host: Host, place: Path) -> Iterator[None]:
    """Lay a file system of 64 KiB over a directory of a host."""
    host.exec(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(place)])
    try:
        host.exec(["sh", "-c", f"head -c 1M /dev/zero > '{place}/filler'"], check=False)
        yield
    finally:
        host.exec(["umount", "--lazy", str(place)])


@pytest.fixture
def protected(lab: Lab, new_blank: NewBlank) -> Iterator[Blank]:
    vm: Blank = new_blank(lab.host("a"))
    enable(vm.host, vm.name, every="1h")
    yield vm
    lab.restore()
    vm.host.vmreplica("disable", vm.name, "--delete-copy", "--yes", check=False)


def test_a_healthy_host_and_vm_have_no_problem(lab: Lab, protected: Blank) -> None:
    a, b = lab.hosts
    assert examine(a) == (0, {})
    assert examine(b) == (0, {})
    code, found = examine(a, protected.name)
    assert (code, set(found)) == (0, {"guest-agent-absent"})
    assert examine(b, protected.uuid) == (0, {}), "its replica"
    shown = a.vmreplica("doctor", protected.name).stdout
    assert "a backup job of vda was begun, read from and ended" in shown
    assert "problem" not in shown
    assert a.virsh("checkpoint-list", protected.name, "--name").stdout.split() == []
    cycle = a.ask("sync", protected.name)["result"]
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval"), "the trial harmed no bitmap"


def test_what_is_broken_on_a_host_is_named(lab: Lab) -> None:
    a, b = lab.hosts
    lab.cut("a", "b")
    with full_file_system(a, a.layout.state_dir / "spool"):
        code, found = examine(a)
    assert code == PROBLEM_EXIT
    assert {"peer-unreachable", "space-none", "inodes-low"} >= found.keys() >= {"peer-unreachable", "space-none"}
    assert found["peer-unreachable"]["subject"] == "b"
    assert str(a.layout.state_dir / "spool") in found["space-none"]["remedy"]
    b.stop_libvirtd()
    code, found = examine(b)
    assert (code, set(found)) == (PROBLEM_EXIT, {"peer-unreachable", "libvirt-unreachable", "check-skipped"})
    b.start_libvirtd()


def test_without_an_agent_doctor_says_what_it_sees_by_itself(lab: Lab) -> None:
    b = lab.host("b")
    b.stop_agent()
    code, found = examine(b, "--config", str(b.layout.agent_config))
    assert (code, set(found)) == (PROBLEM_EXIT, {"agent-not-running"})
    shown = b.vmreplica("doctor", "--config", str(b.layout.agent_config), check=False).stdout
    assert "it answers" in shown, "libvirt"
    assert str(b.layout.store) in shown


def test_what_is_wrong_with_a_vm_is_named_and_a_foreign_job_is_left_alone(lab: Lab, protected: Blank) -> None:
    a, name = lab.host("a"), protected.name
    assert refusal(a, "doctor", f"{name}x")[1]["code"] == "vm-unknown"
    a.virsh("checkpoint-create-as", name, STRAY)
    left = a.layout.runtime_dir / "scratch" / "11111111-2222-3333-4444-555555555555"
    left.mkdir(parents=True)
    (left / "x.vda.qcow2").touch()
    assert examine(a, leftovers=str(left))[1].keys() == {"scratch-left"}
    code, found = examine(a, leftovers=STRAY)
    assert (code, set(found)) == (0, {"checkpoint-left"})
    a.exec(["sh", "-c", found["checkpoint-left"]["remedy"].partition(": ")[2]])
    a.exec(["rm", "-r", str(left)])
    assert examine(a, leftovers=name) == (0, {})
    with foreign_job(protected):
        code, found = examine(a, name)
        assert (code, {"job-foreign", "trial-skipped"} <= found.keys()) == (0, True)
        assert a.virsh("backup-dumpxml", name).stdout, "it still runs"
    protected.stop()
    code, found = examine(a, name)
    assert (code, {"vm-off", "trial-skipped"} <= found.keys()) == (0, True)


@contextmanager
def foreign_job(vm: Blank) -> Iterator[None]:
    """Run a backup job of another program."""
    place = vm.host.layout.images
    disk = f"<disk name='vda' backup='yes' type='file'><scratch file='{place}/other-scratch'/></disk>"
    server = f"<server transport='unix' socket='{place}/other.sock'/>"
    xml = f"<domainbackup mode='pull'>{server}<disks>{disk}</disks></domainbackup>"
    vm.host.exec(["virsh", "-q", "-c", vm.host.layout.uri, "backup-begin", vm.name, "/dev/stdin"], stdin=xml)
    try:
        yield
    finally:
        vm.host.virsh("domjobabort", vm.name)


def test_a_trial_waits_for_its_turn_and_delays_no_cycle(lab: Lab, new_blank: Callable[..., Blank]) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name, every="5s")
    for _ in range(3):
        code, found = examine(a, vm.name)
        assert (code, found.keys() <= {"guest-agent-absent", "trial-skipped"}) == (0, True), found
    assert until(lambda: len(a.ask("history", vm.name)["cycles"]) >= 3, 60)
    assert {cycle["outcome"] for cycle in a.ask("history", vm.name)["cycles"]} == {"published"}
    a.ask("disable", vm.name, "--delete-copy", "--yes")

"""The lab's guest: boots, writes, survives its host, and never contradicts itself."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vmreplica.lab import Guest, GuestSpec, Lab, check_records, fill_with_system_files
from vmreplica.lab.guest import FILL_AT
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.units import MiB

pytestmark = pytest.mark.main_job

NewGuest = Callable[..., Guest]


def test_a_guest_goes_on_after_a_power_cut_from_the_last_record_on_its_disks(
    bare_lab: Lab, new_guest: NewGuest
) -> None:
    a = bare_lab.host("a")
    guest = new_guest(a, disks=2, interval_ms=100)
    assert guest.wait_booted() == 0
    assert guest.wait_record(20) >= 20
    assert a.disk_paths(guest.name) == guest.images

    bare_lab.crash("a")
    found = guest.check()
    assert found.ok
    assert found.last >= 20
    said = len(guest.said())

    bare_lab.start("a")
    guest.start()
    assert guest.wait_booted(after=said) == found.last
    assert a.wait_domain_alive(guest.name) >= found.last
    guest.wait_record(found.last + 5)
    guest.stop()
    after = guest.check()
    assert after.ok
    assert after.last >= found.last + 5


def test_records_are_found_through_a_chain_of_overlays(bare_lab: Lab, new_guest: NewGuest, tmp_path: Path) -> None:
    guest = new_guest(bare_lab.host("a"), interval_ms=100)
    guest.wait_record(3)
    guest.stop()
    overlay = tmp_path / "over,lay.qcow2"
    backing = ["-b", str(guest.images[0]), "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)], check=True)
    assert check_records([overlay]).last == guest.check().last >= 3
    torn = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {32 * MiB + 4096} 512", str(overlay)]
    subprocess.run(torn, check=True, capture_output=True)
    report = check_records([overlay])
    assert (report.ok, report.torn) == (False, 1)
    assert guest.check().ok


def test_an_idle_guest_boots_and_writes_nothing(bare_lab: Lab, new_guest: NewGuest) -> None:
    guest = new_guest(bare_lab.host("a"), idle=True, size=96 * MiB, fill=16 * MiB, network="lan")
    guest.wait_booted()
    guest.wait_for(r"record 0 \(.*\n(.*\n)*.*record 0 \(")
    stats = guest.host.virsh("domblkstat", guest.name, "vda").stdout
    written = {line.split()[1]: int(line.split()[2]) for line in stats.splitlines() if line}
    assert (written["wr_bytes"], written["wr_req"]) == (0, 0)


def test_the_fill_lies_behind_the_records(bare_lab: Lab, new_guest: NewGuest, tmp_path: Path) -> None:
    guest = new_guest(bare_lab.host("a"), idle=True, size=96 * MiB, fill=16 * MiB)
    guest.stop()
    raw, expected = tmp_path / "vda.raw", tmp_path / "expected.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(guest.images[0]), str(raw)], check=True)
    expected.touch()
    fill_with_system_files(expected, 0, 16 * MiB)
    content = raw.read_bytes()
    assert len(content) == 96 * MiB
    assert content[FILL_AT : FILL_AT + 16 * MiB].rstrip(b"\0") == expected.read_bytes().rstrip(b"\0")
    assert not content[FILL_AT + 16 * MiB :].strip(b"\0")


def test_a_second_guest_of_the_same_name_is_refused_and_the_first_lives_on(bare_lab: Lab, new_guest: NewGuest) -> None:
    guest = new_guest(bare_lab.host("a"), name="twin", idle=True)
    with pytest.raises(Conflict) as refused:
        bare_lab.host("a").add_guest(GuestSpec(name="twin"))
    assert refused.value.code == "lab-guest-exists"
    assert guest.host.virsh("domstate", "twin").stdout.strip() == "running"


def test_a_removed_guest_leaves_nothing_behind(bare_lab: Lab) -> None:
    host = bare_lab.host("b")
    guest = host.add_guest(GuestSpec(name="fleeting", idle=True))
    guest.remove()
    assert host.guest_names() == []
    assert list(host.layout.images.iterdir()) == []
    with pytest.raises(NotFound):
        host.guest("fleeting")

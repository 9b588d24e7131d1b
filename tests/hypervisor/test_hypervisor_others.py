"""Beside other tools on a real libvirt: checkpoints that nobody sees, and jobs of others that are not waited for."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, bitmaps
from nbd_kit import dirty

from vmreplica.hypervisor import Hypervisor
from vmreplica.lab.waiting import until
from vmreplica.model.errors import HypervisorError
from vmreplica.model.units import CLUSTER, MiB

pytestmark = pytest.mark.seeding

NewGuest = Callable[..., Guest]


def name(number: int) -> str:
    return f"vmreplica-0123abcd-20260101T000000Z-{number:08x}"


def begin(hypervisor: Hypervisor, guest: Guest, number: int, base: int | None = None) -> None:
    based = None if base is None else name(base)
    hypervisor.begin_backup(guest.vm, checkpoint=name(number), base=based, targets=["vda", "vdb"]).end()


def seen(guest: Guest) -> list[str]:
    """Tell the checkpoints that anybody can see."""
    return guest.virsh("checkpoint-list", guest.name, "--name").split()


def test_a_hidden_checkpoint_is_seen_by_nobody_and_goes_on_recording(hypervisor: Hypervisor, guest: Guest) -> None:
    begin(hypervisor, guest, 1)
    hypervisor.hide_checkpoints(guest.vm)
    assert seen(guest) == []
    assert hypervisor.checkpoints(guest.vm) == [name(1)]
    guest.write("vda", "5M", "64k", 4)
    with hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdb"]) as job:
        assert dirty(job.exports["vda"]) == [(5 * MiB, CLUSTER)]
        assert dirty(job.exports["vdb"]) == []
        hypervisor.hide_checkpoints(guest.vm)
        assert seen(guest) == [name(1), name(2)], "nothing is moved under a running job"
    hypervisor.hide_checkpoints(guest.vm)
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert hypervisor.checkpoints(guest.vm) == [name(2)]
    guest.virsh("destroy", guest.name)
    assert bitmaps(guest.disks["vda"]) == bitmaps(guest.disks["vdb"]) == [name(2)]
    hypervisor.delete_checkpoint(guest.vm, name(2))
    assert bitmaps(guest.disks["vda"]) == bitmaps(guest.disks["vdb"]) == []


def test_foreign_checkpoints_are_not_hidden(hypervisor: Hypervisor, guest: Guest) -> None:
    guest.virsh("checkpoint-create-as", guest.name, "nightly", "--diskspec", "vda")
    begin(hypervisor, guest, 1)
    guest.virsh("checkpoint-create-as", guest.name, "weekly", "--diskspec", "vda")
    hypervisor.hide_checkpoints(guest.vm)
    assert sorted(seen(guest)) == ["nightly", "weekly"]
    begin(hypervisor, guest, 2, base=1)
    hypervisor.hide_checkpoints(guest.vm)
    assert sorted(seen(guest)) == ["nightly", "weekly"]
    for foreign in seen(guest):
        guest.virsh("checkpoint-delete", guest.name, foreign)


def test_a_checkpoint_left_in_the_images_alone_is_found_by_its_name(
    hypervisor: Hypervisor, guest: Guest, libvirtd: PrivateLibvirtd, home: Path
) -> None:
    begin(hypervisor, guest, 1)
    hypervisor.hide_checkpoints(guest.vm)
    guest.write("vdb", "3M", "64k", 4)
    guest.remove_bitmap("vda", name(1))
    # As on the host that the VM was migrated to: its libvirt and its agent know of no checkpoint.
    shutil.rmtree(home / "state" / "checkpoints")
    elsewhere = Hypervisor(libvirtd.uri, home / "run", home / "elsewhere")
    assert elsewhere.checkpoints(guest.vm) == []
    assert elsewhere.checkpoint_usable(guest.vm, name(1), ["vdb"]) is None
    assert "vda is not part" in (elsewhere.checkpoint_usable(guest.vm, name(1), ["vda"]) or "")
    bases = {"vda": None, "vdb": name(1)}
    with elsewhere.begin_backup(guest.vm, checkpoint=name(2), bases=bases) as job:
        assert dirty(job.exports["vdb"]) == [(3 * MiB, CLUSTER)]
    elsewhere.delete_checkpoint(guest.vm, name(1))
    assert elsewhere.checkpoint_usable(guest.vm, name(1), ["vdb"]) == f"checkpoint {name(1)} is gone"
    elsewhere.close()


def test_a_job_on_a_disk_is_named_and_not_waited_for(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    copy = home / "copy.qcow2"
    guest.virsh("blockcopy", guest.name, "vdb", "--dest", str(copy), "--format", "qcow2", "--transient-job")
    with pytest.raises(HypervisorError, match="a copy job works on its disk vdb") as caught:
        begin(hypervisor, guest, 1)
    assert (caught.value.code, caught.value.kind) == ("vm-busy", "transient")
    assert f"virsh blockjob {guest.name} vdb" in caught.value.hint
    guest.virsh("blockjob", guest.name, "vdb", "--abort")
    begin(hypervisor, guest, 1)


def test_a_vm_that_is_being_saved_is_busy_and_not_waited_for(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    # Nobody reads the pipe, so the job lasts until its reader goes away.
    pipe = home / "saved"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    saving = subprocess.Popen(
        ["virsh", "-c", guest.libvirtd.uri, "save", guest.name, str(pipe)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert until(lambda: "Save" in guest.virsh("domjobinfo", guest.name), 30)
        with pytest.raises(HypervisorError, match="it is being saved") as caught:
            begin(hypervisor, guest, 1)
    finally:
        os.close(reader)
        saving.wait(60)
    assert (caught.value.code, caught.value.kind) == ("vm-busy", "transient")
    begin(hypervisor, guest, 1)

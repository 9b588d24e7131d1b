"""Backup jobs and checkpoints on a real libvirt: frozen views, exact deltas, half states put right."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, bitmaps
from nbd_kit import content, dirty

from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import BadRequest, Conflict, HypervisorError, NoSpace
from vmreplica.model.units import CLUSTER, MiB

pytestmark = pytest.mark.main_job

NewGuest = Callable[..., Guest]


def name(number: int) -> str:
    return f"vmreplica-0123abcd-20260101T000000Z-{number:08x}"


def files_below(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if not path.is_dir()]


def full(hypervisor: Hypervisor, guest: Guest, number: int, *targets: str) -> None:
    hypervisor.begin_backup(guest.vm, checkpoint=name(number), targets=targets or ("vda", "vdb")).end()


def test_a_delta_holds_exactly_what_was_written_since_its_base(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1)
    guest.write("vda", "1M", "64k", 7)
    guest.write("vdb", "3M", "128k", 9)
    with hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdb"]) as job:
        assert dirty(job.exports["vda"]) == [(1 * MiB, CLUSTER)]
        assert dirty(job.exports["vdb"]) == [(3 * MiB, 2 * CLUSTER)]
        assert content(job.exports["vdb"], 3 * MiB, CLUSTER) == b"\x09" * CLUSTER
        assert job.exports["vda"].size == 64 * MiB


def test_the_view_is_frozen_while_the_guest_goes_on_writing(hypervisor: Hypervisor, guest: Guest) -> None:
    guest.write("vda", "0", "64k", 1)
    with hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda"]) as job:
        before = job.scratch_bytes()
        guest.write("vda", "0", "64k", 2)
        assert content(job.exports["vda"], 0, CLUSTER) == b"\x01" * CLUSTER
        assert job.scratch_bytes() >= before + CLUSTER
    with hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda"]) as job:
        assert dirty(job.exports["vda"]) == [(0, CLUSTER)]
        assert content(job.exports["vda"], 0, CLUSTER) == b"\x02" * CLUSTER


def test_an_ended_job_leaves_no_socket_and_no_scratch(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    job = hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda", "vdb"])
    assert job.alive()
    assert len(files_below(home / "run")) == 3
    job.end()
    job.end()
    assert not job.alive()
    assert files_below(home / "run") == []
    assert hypervisor.checkpoints(guest.vm) == [name(1)]


def test_disks_that_are_not_asked_for_stay_out_of_job_and_checkpoint(hypervisor: Hypervisor, guest: Guest) -> None:
    with hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vdb"]) as job:
        assert set(job.exports) == {"vdb"}
    assert hypervisor.checkpoint_usable(guest.vm, name(1), ["vdb"]) is None
    reason = hypervisor.checkpoint_usable(guest.vm, name(1), ["vda", "vdb"])
    assert reason is not None
    assert reason.startswith("vda is not part")


def test_a_new_disk_is_read_whole_while_the_others_go_by_delta(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1, "vda")
    guest.write("vda", "2M", "64k", 3)
    bases = {"vda": name(1), "vdb": None}
    with hypervisor.begin_backup(guest.vm, checkpoint=name(2), bases=bases) as job:
        assert dirty(job.exports["vda"]) == [(2 * MiB, CLUSTER)]
        assert job.exports["vdb"].bitmap is None
    assert hypervisor.checkpoint_usable(guest.vm, name(2), ["vda", "vdb"]) is None


def test_a_running_job_of_ours_is_found_again_after_a_restart_of_the_agent(
    libvirtd: PrivateLibvirtd, hypervisor: Hypervisor, guest: Guest, home: Path
) -> None:
    full(hypervisor, guest, 1)
    guest.write("vda", "0", "64k", 5)
    begun = hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdb"])
    later = Hypervisor(libvirtd.uri, home / "run", home / "state")
    assert later.attach_backup(guest.vm, name(1)) is None
    found = later.attach_backup(guest.vm, name(2))
    assert found is not None
    assert found.exports == begun.exports
    assert dirty(found.exports["vda"]) == [(0, CLUSTER)]
    found.end()
    assert not begun.alive()
    assert files_below(home / "run") == []
    later.close()


def test_a_vm_that_is_off_cannot_be_backed_up(hypervisor: Hypervisor, new_guest: NewGuest) -> None:
    guest = new_guest("vda", start=False)
    with pytest.raises(Conflict) as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda"])
    assert caught.value.code == "vm-not-running"
    assert guest.name in caught.value.message


def test_an_unknown_disk_is_named(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    with pytest.raises(BadRequest, match="vdz") as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda", "vdz"])
    assert caught.value.code == "disk-unknown"
    assert files_below(home) == sorted(guest.disks.values()) or not (home / "run").exists()


def _begin_foreign_job(guest: Guest, home: Path) -> None:
    backup = home / "foreign.xml"
    backup.write_text(
        f"<domainbackup mode='pull'><server transport='unix' socket='{home}/foreign.sock'/><disks>"
        f"<disk name='vda' backup='yes' type='file'><scratch file='{home}/foreign.scratch'/></disk></disks>"
        "</domainbackup>"
    )
    guest.virsh("backup-begin", guest.name, str(backup))


def test_a_foreign_backup_job_is_waited_for_and_never_touched(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    _begin_foreign_job(guest, home)
    with pytest.raises(Conflict) as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda"])
    assert caught.value.code == "backup-job-running"
    assert caught.value.kind == "transient"
    hypervisor.end_backup(guest.vm)
    assert "foreign.sock" in guest.virsh("backup-dumpxml", guest.name)
    assert hypervisor.checkpoints(guest.vm) == []
    guest.virsh("domjobabort", guest.name)


def test_a_job_left_by_a_dead_agent_is_ended_and_swept_up(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda"])
    with pytest.raises(Conflict, match="left by an earlier cycle"):
        hypervisor.begin_backup(guest.vm, checkpoint=name(2), targets=["vda"])
    assert len(files_below(home / "run")) == 2
    hypervisor.end_backup(guest.vm)
    assert files_below(home / "run") == []
    full(hypervisor, guest, 3)


def test_a_third_checkpoint_of_one_relationship_is_refused(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1)
    full(hypervisor, guest, 2)
    with pytest.raises(Conflict) as caught:
        full(hypervisor, guest, 3)
    assert caught.value.code == "too-many-checkpoints"
    other = "vmreplica-99999999-20260101T000000Z-00000001"
    hypervisor.begin_backup(guest.vm, checkpoint=other, targets=["vda"]).end()
    assert set(hypervisor.checkpoints(guest.vm)) == {name(1), name(2), other}


def test_a_guest_that_dies_ends_the_job_and_nothing_is_left(hypervisor: Hypervisor, guest: Guest, home: Path) -> None:
    job = hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda"])
    guest.crash()
    assert not job.alive()
    job.end()
    assert files_below(home / "run") == []


@contextlib.contextmanager
def file_system(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_begin_that_fails_leaves_neither_checkpoint_nor_files(
    libvirtd: PrivateLibvirtd, guest: Guest, home: Path
) -> None:
    unseen = home / "run"
    hypervisor = Hypervisor(libvirtd.uri, unseen, home / "state")
    unseen.mkdir()
    # libvirtd's mount namespace does not see this mount: QEMU finds no directory for its socket
    with file_system(unseen / "nbd", "8m"), pytest.raises(HypervisorError):
        full(hypervisor, guest, 1)
    assert hypervisor.checkpoints(guest.vm) == []
    assert files_below(unseen) == []
    full(hypervisor, guest, 2)
    hypervisor.close()


def test_a_checkpoint_whose_export_failed_is_deleted_and_the_base_stays(
    hypervisor: Hypervisor, guest: Guest, home: Path
) -> None:
    full(hypervisor, guest, 1)
    guest.write("vda", "0", "64k", 6)
    # libvirt names its exports by its nodes: with these names taken, it fails after it has made the checkpoint
    for number in range(1, 12):
        guest.qmp(
            "block-export-add", type="vhost-user-blk", id=f"libvirt-nbd-libvirt-{number}-format",
            addr={"type": "unix", "path": f"{home}/taken{number}"}, **{"node-name": guest.node("vdb")},
        )  # fmt: skip
    with pytest.raises(HypervisorError):
        hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda"])
    assert hypervisor.checkpoints(guest.vm) == [name(1)]
    assert files_below(home / "run") == []
    for number in range(1, 12):
        guest.qmp("block-export-del", id=f"libvirt-nbd-libvirt-{number}-format")
    with hypervisor.begin_backup(guest.vm, checkpoint=name(3), base=name(1), targets=["vda"]) as job:
        assert dirty(job.exports["vda"]) == [(0, CLUSTER)]


def test_a_nearly_full_scratch_file_system_stops_a_job_before_it_begins(
    libvirtd: PrivateLibvirtd, guest: Guest, home: Path
) -> None:
    with file_system(home / "small", "8m") as place:
        hypervisor = Hypervisor(libvirtd.uri, place, home / "state")
        with pytest.raises(NoSpace, match="scratch"):
            full(hypervisor, guest, 1)
        assert hypervisor.checkpoints(guest.vm) == []
        hypervisor.close()


def test_a_runtime_directory_too_long_for_sockets_is_refused(libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        Hypervisor(libvirtd.uri, tmp_path / ("x" * 100))
    assert caught.value.code == "runtime-dir-too-long"


def test_a_crash_of_qemu_breaks_the_base_and_a_whole_copy_follows(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1)
    guest.virsh("destroy", guest.name)
    guest.start()
    guest.write("vda", "0", "64k", 4)
    guest.crash()
    guest.start()
    with pytest.raises(HypervisorError) as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdb"])
    assert caught.value.code == "checkpoint-broken"
    hypervisor.delete_checkpoint(guest.vm, name(1))
    full(hypervisor, guest, 3)
    guest.virsh("destroy", guest.name)
    assert bitmaps(guest.disks["vda"]) == [name(3)]


def test_a_base_without_its_bitmap_is_broken_and_is_still_deleted_from_every_disk(
    hypervisor: Hypervisor, guest: Guest
) -> None:
    full(hypervisor, guest, 1)
    guest.remove_bitmap("vda", name(1))
    with pytest.raises(HypervisorError) as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdb"])
    assert caught.value.code == "checkpoint-broken"
    assert hypervisor.checkpoints(guest.vm) == [name(1)]
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert hypervisor.checkpoints(guest.vm) == []
    guest.virsh("destroy", guest.name)
    assert bitmaps(guest.disks["vdb"]) == []


def test_a_base_that_libvirt_forgot_is_redefined_and_used(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1)
    guest.write("vda", "5M", "64k", 4)
    guest.virsh("checkpoint-delete", guest.name, name(1), "--metadata")
    assert hypervisor.checkpoints(guest.vm) == [name(1)], "it is known here"
    with hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdb"]) as job:
        assert dirty(job.exports["vda"]) == [(5 * MiB, CLUSTER)]
    guest.virsh("checkpoint-delete", guest.name, name(2), "--metadata")
    assert hypervisor.checkpoint_usable(guest.vm, name(2), ["vda"]) is None


def test_a_base_that_is_gone_for_good_is_reported_broken(hypervisor: Hypervisor, guest: Guest) -> None:
    with pytest.raises(HypervisorError, match="is gone") as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=["vda"])
    assert caught.value.code == "checkpoint-broken"
    assert hypervisor.checkpoint_usable(guest.vm, name(1), ["vda"]) == f"checkpoint {name(1)} is gone"


def test_deleting_a_checkpoint_that_libvirt_forgot_removes_its_bitmaps(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1)
    guest.virsh("checkpoint-delete", guest.name, name(1), "--metadata")
    hypervisor.delete_checkpoint(guest.vm, name(1))
    hypervisor.delete_checkpoint(guest.vm, name(1))
    guest.virsh("destroy", guest.name)
    assert bitmaps(guest.disks["vda"]) == []


def test_a_checkpoint_of_a_vm_that_is_off_is_deleted_from_its_images(hypervisor: Hypervisor, guest: Guest) -> None:
    full(hypervisor, guest, 1)
    full(hypervisor, guest, 2)
    guest.virsh("destroy", guest.name)
    assert set(bitmaps(guest.disks["vda"])) == {name(1), name(2)}
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert bitmaps(guest.disks["vda"]) == [name(2)]
    assert bitmaps(guest.disks["vdb"]) == [name(2)]
    assert hypervisor.checkpoints(guest.vm) == [name(2)]


def test_a_checkpoint_whose_image_another_program_has_open_is_kept_until_it_can_be_deleted(
    hypervisor: Hypervisor, guest: Guest
) -> None:
    full(hypervisor, guest, 1)
    guest.virsh("destroy", guest.name)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(guest.disks["vdb"])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"length\n")
        holder.stdin.flush()
        holder.stdout.readline()
        with pytest.raises(Conflict) as caught:
            hypervisor.delete_checkpoint(guest.vm, name(1))
        holder.stdin.close()
    assert caught.value.code == "image-in-use"
    assert hypervisor.checkpoints(guest.vm) == [name(1)]
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert bitmaps(guest.disks["vda"]) == bitmaps(guest.disks["vdb"]) == []


def test_foreign_checkpoints_are_listed_and_never_deleted(hypervisor: Hypervisor, guest: Guest) -> None:
    guest.virsh("checkpoint-create-as", guest.name, "nightly")
    full(hypervisor, guest, 1)
    with pytest.raises(BadRequest) as caught:
        hypervisor.delete_checkpoint(guest.vm, "nightly")
    assert caught.value.code == "checkpoint-foreign"
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert hypervisor.checkpoints(guest.vm) == ["nightly"]

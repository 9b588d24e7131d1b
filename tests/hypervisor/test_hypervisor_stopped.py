"""Disks of a VM that is off, read without a lock: starts go through, and what they spoil is noticed."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libvirt_kit import Guest, bitmaps, make_image
from nbd_kit import content, dirty

from vmreplica.hypervisor import CheckpointBroken, Hypervisor
from vmreplica.hypervisor.images import bitmap_trouble, has_writer, identity, parse_chain, read_chain
from vmreplica.model.errors import Conflict, HypervisorError
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

NewGuest = Callable[..., Guest]

FIRST, SECOND, THIRD = (f"vmreplica-abcdef01-20261122T10000{n}Z-0000000{n}" for n in range(3))


def protect(hypervisor: Hypervisor, guest: Guest) -> None:
    """Begin tracking, change something, switch it off."""
    hypervisor.begin_backup(guest.vm, checkpoint=FIRST, targets=tuple(guest.disks)).end()
    guest.write("vda", "1M", "64k", 1)
    guest.virsh("destroy", guest.name)


@contextlib.contextmanager
def written(image: Path) -> Iterator[None]:
    """Let another program have an image open to write."""
    socket = image.with_suffix(".sock")
    command = ["qemu-nbd", "--persistent", "-f", "qcow2", f"--socket={socket}", "--fork", "--pid-file"]
    pid = image.with_suffix(".pid")
    subprocess.run([*command, str(pid), str(image)], check=True, timeout=30)
    try:
        yield
    finally:
        number = pid.read_text().strip()
        subprocess.run(["kill", number], check=True, timeout=30)
        subprocess.run(["tail", f"--pid={number}", "-f", "/dev/null"], check=True, timeout=30)


def test_a_stopped_vm_tells_what_changed_and_its_next_point_builds_on_this_one(
    hypervisor: Hypervisor, guest: Guest
) -> None:
    protect(hypervisor, guest)
    with hypervisor.open_stopped(guest.vm, checkpoint=SECOND, bases={"vda": FIRST, "vdb": None}) as view:
        assert dirty(view.exports["vda"]) == [(MiB, 64 * KiB)]
        assert content(view.exports["vda"], MiB, 16) == b"\1" * 16
        assert view.exports["vdb"].bitmap is None
        view.require_undisturbed()
    hypervisor.delete_checkpoint(guest.vm, FIRST)
    guest.start()
    guest.write("vda", "3M", "64k", 2)
    with hypervisor.begin_backup(guest.vm, checkpoint=THIRD, base=SECOND, targets=("vda", "vdb")) as job:
        assert dirty(job.exports["vda"]) == [(3 * MiB, 64 * KiB)]
        assert dirty(job.exports["vdb"]) == []


def test_a_start_goes_through_while_disks_are_read_and_spoils_the_point(hypervisor: Hypervisor, guest: Guest) -> None:
    protect(hypervisor, guest)
    with hypervisor.open_stopped(guest.vm, checkpoint=SECOND, bases={"vda": FIRST}) as view:
        view.require_undisturbed()
        guest.start()
        with pytest.raises(Conflict) as caught:
            view.require_undisturbed()
        assert caught.value.code == "vm-started"
        guest.virsh("destroy", guest.name)
        with pytest.raises(Conflict) as caught:
            view.require_undisturbed()
        assert caught.value.code == "vm-started", "it is off again, but its image is not what it was"
    hypervisor.delete_checkpoint(guest.vm, SECOND)
    assert bitmaps(guest.disks["vda"]) == [FIRST]
    guest.start()
    hypervisor.begin_backup(guest.vm, checkpoint=THIRD, base=FIRST, targets=("vda",)).end()


def test_a_lost_bitmap_is_told_by_disk_and_nothing_is_left_of_the_attempt(
    hypervisor: Hypervisor, guest: Guest, home: Path
) -> None:
    protect(hypervisor, guest)
    guest.start()
    guest.write("vdb", "1M", "64k", 1)
    guest.remove_bitmap("vda", FIRST)
    guest.virsh("destroy", guest.name)
    with pytest.raises(CheckpointBroken) as caught:
        hypervisor.open_stopped(guest.vm, checkpoint=SECOND, bases={"vda": FIRST, "vdb": FIRST})
    assert caught.value.disks == {"vda"}
    assert hypervisor.checkpoints(guest.vm) == [FIRST]
    assert bitmaps(guest.disks["vdb"]) == [FIRST]
    assert not list((home / "run/nbd").glob("*/*"))


def test_an_image_that_another_program_writes_to_is_left_alone(hypervisor: Hypervisor, guest: Guest) -> None:
    protect(hypervisor, guest)
    with written(guest.disks["vda"]):
        assert has_writer(str(guest.disks["vda"]))
        with pytest.raises(Conflict) as caught:
            hypervisor.open_stopped(guest.vm, checkpoint=SECOND, bases={"vda": FIRST})
    assert caught.value.code == "image-in-use"
    assert not has_writer(str(guest.disks["vda"]))
    assert bitmaps(guest.disks["vda"]) == [FIRST]


def test_a_damaged_image_says_what_is_wrong_with_it(hypervisor: Hypervisor, guest: Guest) -> None:
    protect(hypervisor, guest)
    with guest.disks["vdb"].open("r+b") as image:
        image.write(b"nonsense")
    with pytest.raises(HypervisorError) as caught:
        hypervisor.open_stopped(guest.vm, checkpoint=SECOND, bases={"vda": FIRST, "vdb": None})
    assert caught.value.code == "stopped-image-unreadable"
    assert str(guest.disks["vdb"]) in caught.value.message


def test_the_servers_end_when_the_view_is_closed(hypervisor: Hypervisor, guest: Guest) -> None:
    protect(hypervisor, guest)
    view = hypervisor.open_stopped(guest.vm, checkpoint=SECOND, bases={"vda": None})
    socket = view.exports["vda"].socket
    view.end()
    assert subprocess.run(["pgrep", "-f", str(socket)], check=False, capture_output=True).returncode == 1


def test_an_image_is_another_when_anything_changed_it(tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.qcow2", "4M")
    chain = read_chain(str(image), "qcow2")
    first = identity(chain)
    assert identity(read_chain(str(image), "qcow2")) == first
    subprocess.run(["qemu-img", "snapshot", "-c", "one", str(image)], check=True, timeout=30)
    second = identity(chain)
    subprocess.run(["qemu-img", "snapshot", "-a", "one", str(image)], check=True, timeout=30)
    assert len({first, second, identity(chain)}) == 3
    make_image(tmp_path / "b.qcow2", "4M").replace(image)
    assert identity(chain) not in {first, second}
    image.unlink()
    with pytest.raises(HypervisorError):
        identity(chain)


def test_qemu_itself_refuses_to_put_back_a_snapshot_below_our_bitmap(hypervisor: Hypervisor, guest: Guest) -> None:
    image = str(guest.disks["vda"])
    guest.virsh("destroy", guest.name)
    subprocess.run(["qemu-img", "snapshot", "-c", "one", image], check=True, timeout=30)
    guest.start()
    protect(hypervisor, guest)
    done = subprocess.run(["qemu-img", "snapshot", "-a", "one", image], check=False, capture_output=True, timeout=30)
    assert done.returncode != 0
    assert b"active dirty bitmaps" in done.stderr


@pytest.mark.parametrize(
    ("above", "below", "word"),
    [
        ({"b": ["auto"]}, {}, None),
        ({"b": ["auto"], "other": ["in-use"]}, {"other": []}, None),
        ({}, {}, "lacks"),
        ({}, {"b": ["auto"]}, "several"),
        ({"b": ["auto"]}, {"b": ["auto"]}, "several"),
        ({"b": ["auto", "in-use"]}, {}, "crashed"),
        ({"b": []}, {}, "not recording"),
    ],
)
def test_a_bitmap_counts_only_when_it_tells_all_changes(
    above: dict[str, list[str]], below: dict[str, list[str]], word: str | None
) -> None:
    told = [
        {
            "filename": name,
            "format-specific": {"data": {"bitmaps": [{"name": n, "flags": flags} for n, flags in held.items()]}},
        }
        for name, held in (("/top", above), ("/base", below))
    ]
    trouble = bitmap_trouble(parse_chain(told), "b")
    assert (trouble is None) == (word is None)
    assert word is None or (trouble is not None and word in trouble)

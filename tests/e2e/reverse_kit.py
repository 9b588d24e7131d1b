"""A VM that was failed over from host a to host b, and what must be true when roles were swapped."""

import copy
from pathlib import Path

from job_kit import Blank, Document, cycles, enable, inside, points, qemu_img, relation, same_content
from life_kit import write_noise

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

KiB, MiB = 1 << 10, 1 << 20


def on(host: Host, vm: Blank) -> Blank:
    """Give the same VM on another host."""
    there = copy.copy(vm)
    there.host = host
    return there


def diverge(lab: Lab, vm: Blank) -> int:
    """Let both sides write what the other one never gets; tells the distinct bytes that differ since the point.

    The old primary dies, its copy is started, and both are there again.
    """
    a, b = lab.host("a"), lab.host("b")
    vm.write("vda", "0", "8M", 1)
    enable(a, vm.name, every="24h")
    write_noise(vm, "vda", 16 * MiB, 2 * MiB)
    lab.crash("a")
    b.ask("failover", vm.name, "--yes")
    moved = on(b, vm)
    write_noise(moved, "vda", 17 * MiB, 2 * MiB)
    write_noise(moved, "vda", 4 * MiB + 4 * KiB, 4 * KiB)
    return 3 * MiB + 4 * KiB


def wait_reversed(host: Host, vm: str, *, limit: float = 90.0) -> Document:
    """Wait until a VM is protected from a host, with a point of its own there; gives its status."""

    def settled() -> bool:
        found = relation(host, vm)
        return found["role"] == "primary" and found["state"] == "replicating" and bool(cycles(host, vm))

    assert until(settled, limit), (relation(host, vm), host.ask("history", vm))
    return relation(host, vm)


def require_swapped(old: Host, new: Host, vm: Blank) -> None:
    """Require that a VM is protected from the new primary, and that nothing of its life is left on the old one."""
    there, here = relation(old, vm.name), relation(new, vm.name)
    assert (here["role"], there["role"]) == ("primary", "replica")
    assert here["epoch"] == there["epoch"]
    assert vm.name not in old.guest_names(), "nobody can start it there by accident"
    assert (inside(old, old.layout.store) / vm.uuid / "original.xml").exists()
    for book in ("fingerprints", "rest", "checkpoints", "spool"):
        assert not list((old.layout.state_dir / book).glob(f"{vm.uuid}*/*")), book
    listed = "bitmaps" in qemu_img("info", "-U", str(vm.images["vda"]))
    assert not listed, "no bitmap of ours slows down its old disks"


def require_equal(old: Host, new: Host, vm: Blank) -> None:
    """Require that the newest point on the new replica reads as the disk of the VM does."""
    newest = points(old, vm.name)[-1]["point"]
    (layer,) = new.disk_paths(vm.name)
    assert same_content(inside(old, old.layout.store) / vm.uuid / "points" / newest / "vda.qcow2", layer)


def keep(image: Path, kept: Path) -> Path:
    """Copy what an image holds."""
    qemu_img("convert", "-U", "-O", "qcow2", str(image), str(kept))
    return kept

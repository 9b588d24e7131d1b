"""What tests of the main job ask of the command line and of the lab, and a VM whose disks are written from outside."""

import copy
import json
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmreplica.lab import Guest, Host, RecordsReport, check_records
from vmreplica.lab.waiting import until

Document = dict[str, Any]


# --- the command line ---------------------------------------------------------------------------------------------


def enable(host: Host, vm: str, *options: str, to: str = "b", every: str = "5s") -> Document:
    """Protect a VM and wait for its initial replication; gives the task."""
    return host.ask("enable", vm, "--to", to, "--every", every, *options, timeout=300)


def refusal(host: Host, *words: str) -> tuple[int, Document]:
    """Run a command that must fail; gives its exit code and the error it prints."""
    done = host.vmreplica(*words, "--json", check=False, timeout=300)
    assert done.returncode != 0, done.stdout
    error: Document = json.loads(done.stdout)["error"]
    assert error["hint"], f"no remedy: {error}"
    return done.returncode, error


def cycles(host: Host, vm: str) -> list[Document]:
    """List the published cycles of a VM, oldest first."""
    return [c for c in reversed(host.ask("history", vm, "--limit", "1000")["cycles"]) if c["outcome"] == "published"]


def wait_cycles(host: Host, vm: str, count: int, *, limit: float = 120.0) -> list[Document]:
    """Wait until so many cycles of a VM were published; gives all of them, oldest first."""
    assert until(lambda: len(cycles(host, vm)) >= count, limit), host.ask("history", vm)
    return cycles(host, vm)


def relation(host: Host, vm: str) -> Document:
    """Tell the status of a VM that has one relationship on a host."""
    (found,) = host.ask("status", vm)["relationships"]
    assert isinstance(found, dict)
    return found


def reasons(host: Host, vm: str) -> dict[str, Document]:
    """Tell what health complains about, by code."""
    return {reason["code"]: reason for reason in relation(host, vm)["health"]["reasons"]}


def wait_reason(host: Host, vm: str, code: str, *, limit: float = 90.0) -> Document:
    """Wait until health complains about something; gives the complaint."""
    found: Document = {}

    def complains() -> bool:
        found.update(reasons(host, vm).get(code, {}))
        return bool(found)

    assert until(complains, limit), relation(host, vm)
    return found


def wait_healthy(host: Host, vm: str, *, limit: float = 120.0) -> None:
    """Wait until health has nothing to complain about."""
    assert until(lambda: relation(host, vm)["health"]["level"] == "normal", limit), relation(host, vm)


def points(host: Host, vm: str) -> list[Document]:
    """List the recovery points of a VM, oldest first."""
    found: list[Document] = host.ask("points", vm)["points"]
    return found[::-1]


# --- images -------------------------------------------------------------------------------------------------------


def inside(host: Host, path: Path) -> Path:
    """Tell where a path of a host is found from outside, also below what only the host has mounted."""
    return Path(f"/proc/{host.namespace.pid}/root{path}")


def images(replica: Host, vm: str, point: str) -> tuple[Path, ...]:
    """Tell the images of a recovery point, in order."""
    return tuple(sorted(inside(replica, replica.layout.store / vm / "points" / point).glob("*.qcow2")))


def check_point(replica: Host, vm: str, point: str) -> RecordsReport:
    """Check a recovery point's images as QEMU does, and the guest's records in them."""
    found = images(replica, vm, point)
    for image in found:
        qemu_img("check", "-q", str(image))
    report = check_records(found)
    assert report.ok, report
    return report


def same_content(one: Path, other: Path) -> bool:
    """Compare the guest's bytes of two images; either may be in use or a chain."""
    done = subprocess.run(
        ["qemu-img", "compare", "-U", str(one), str(other)], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode == 0


def qemu_img(*words: str) -> str:
    """Run qemu-img."""
    done = subprocess.run(["qemu-img", *words], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- a VM without an operating system ------------------------------------------------------------------------------


class Blank:
    """A VM that stays in its firmware, started paused: costs no processor time; its disks are written from outside.

    Args:
        host: where it is.
        name: its name.
        disks: targets.
        devices: XML of more devices.
        vm: its UUID, when it shall not be a new one.
        efi: whether its firmware is UEFI.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        disks: tuple[str, ...] = ("vda",),
        *,
        devices: str = "",
        vm: str | None = None,
        efi: bool = False,
    ) -> None:
        self.host = host
        self.name = name
        self.uuid = vm or str(uuid.uuid4())
        self.images = {target: host.layout.images / f"{name}-{target}.qcow2" for target in disks}
        for image in self.images.values():
            qemu_img("create", "-q", "-f", "qcow2", str(image), "64M")
        self._devices = devices
        self._os = ("firmware='efi'", "q35") if efi else ("", "pc")
        self.define()

    def define(self, *, devices: str = "", kernel: str = "", more: str = "") -> None:
        """Make it known to libvirt, or change the definition of its next start.

        Args:
            devices: XML of more devices, besides those it was made with.
            kernel: XML of more elements of ``<os>``.
            more: XML of more elements of ``<domain>``.
        """
        disks = "".join(disk_xml(target, image) for target, image in self.images.items())
        xml = (
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
            f"<name>{self.name}</name><uuid>{self.uuid}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>"
            f"<os {self._os[0]}><type arch='x86_64' machine='{self._os[1]}'>hvm</type>{kernel}</os>"
            "<features><acpi/></features>"
            f"<devices>{disks}{self._devices}{devices}</devices>{more}</domain>"
        )
        self.host.exec(["virsh", "-q", "-c", self.host.layout.uri, "define", "/dev/stdin"], stdin=xml)

    def start(self) -> None:
        """Switch it on."""
        self.host.virsh("start", self.name, "--paused")

    def stop(self) -> None:
        """Switch it off."""
        self.host.virsh("destroy", self.name)

    def write(self, target: str, offset: str, length: str, pattern: int) -> None:
        """Write through the guest's own device, as the guest would, so that bitmaps and backup jobs see it."""
        device = f"/machine/peripheral/{self._alias(target)}/virtio-backend"
        # Flushed, so that the image file shows it also to who reads it beside QEMU.
        for act in (f"write -P {pattern} {offset} {length}", "flush"):
            said = self.host.virsh("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
            assert "rror" not in said, said

    def attach(self, target: str) -> Path:
        """Plug another disk in; the definition of the next start knows nothing of it."""
        image = self.images[target] = self.host.layout.images / f"{self.name}-{target}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", str(image), "64M")
        xml = disk_xml(target, image)
        virsh = ["virsh", "-q", "-c", self.host.layout.uri]
        self.host.exec([*virsh, "attach-device", self.name, "/dev/stdin", "--live"], stdin=xml)
        return image

    def remove(self) -> None:
        """Switch it off, forget it and delete its disks."""
        self.host.virsh("destroy", self.name, check=False)
        self.host.virsh("undefine", self.name, "--checkpoints-metadata", "--nvram", check=False)
        for image in self.images.values():
            image.unlink(missing_ok=True)

    def _alias(self, target: str) -> str:
        return f"virtio-disk{ord(target[-1]) - ord('a')}"


def switch_off(vm: Blank) -> None:
    """Switch a protected VM off and wait until its last point is on its replica, so that no other one comes."""
    vm.stop()
    assert until(lambda: relation(vm.host, vm.name)["waits"] == "vm-off", 90), vm.host.ask("history", vm.name)


def at(host: Host, vm: Blank) -> Blank:
    """Give the same VM as it stands on another host, for writing to its disks there."""
    there = copy.copy(vm)
    there.host = host
    return there


def tracking(host: Host, vm: Blank) -> list[tuple[str, str, int]]:
    """Tell disk, name and dirty bytes of each recording bitmap of a running VM."""
    asked = json.dumps({"execute": "query-block"})
    said = json.loads(host.virsh("qemu-monitor-command", vm.name, asked).stdout)["return"]
    disks = (f"vd{chr(ord('a') + number)}" for number in range(len(said)))
    return [
        (target, bitmap["name"], bitmap["count"])
        for target, device in zip(disks, said, strict=True)
        for bitmap in device.get("inserted", {}).get("dirty-bitmaps", [])
        if bitmap["recording"]
    ]


def tracked(host: Host, vm: Blank) -> set[str]:
    """Tell the disks of a running VM that have a recording bitmap."""
    return {target for target, _name, _bytes in tracking(host, vm)}


def disk_xml(target: str, image: Path, kind: str = "qcow2") -> str:
    """Describe a disk to libvirt."""
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{image}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


NewBlank = Callable[..., Blank]
NewGuest = Callable[..., Guest]

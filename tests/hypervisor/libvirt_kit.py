"""A libvirtd of the tests' own, in a mount namespace: it sees no domain of this machine, and none of them sees it."""

import contextlib
import json
import os
import shutil
import signal
import string
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmreplica.model.ids import VmId

_PLACES: Final = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
_QEMU_CONF: Final = """\
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
_LIBVIRTD_CONF: Final = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
_MOUNT_AND_RUN: Final = """\
set -e
for place in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
  mkdir -p "${place#*:}"
  mount --bind "$0/${place%%:*}" "${place#*:}"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$0/libvirtd.pid"
"""


class PrivateLibvirtd:
    """One libvirtd with its guests; ``home`` is short enough for unix sockets below it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="vmr-libvirt-"))
        self.home.chmod(0o755)
        for place in _PLACES:
            (self.home / place).mkdir()
        (self.home / "etc/qemu.conf").write_text(_QEMU_CONF)
        (self.home / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF)
        self.uri = f"qemu:///system?socket={self.home}/run/libvirt-sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run the daemon and wait until it answers; guests that still run are found again."""
        with (self.home / "libvirtd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT_AND_RUN, str(self.home)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.home / "libvirtd.log").read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """End the daemon at once, as a crash would; its guests run on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, *, frozen: bool) -> None:
        """Stop the daemon's clock or let it go on: a libvirtd that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def virsh(self, *arguments: str) -> str:
        """Run virsh here and return what it prints."""
        done = subprocess.run(
            ["virsh", "--connect", self.uri, *arguments], check=False, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"virsh {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def close(self) -> None:
        """End the daemon and every guest, and leave nothing on the disk."""
        self.kill()
        for pid_file in (self.home / "run/qemu").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def _answers(self) -> bool:
        command = ["virsh", "--connect", self.uri, "uri"]
        return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0


def make_image(path: Path, size: str = "64M", *options: str) -> Path:
    """Create an empty qcow2 image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True, timeout=30)
    return path


def bitmaps(path: Path) -> list[str]:
    """List the persistent bitmaps in an image that nobody has open."""
    done = subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True, timeout=30)
    found = json.loads(done.stdout).get("format-specific", {}).get("data", {}).get("bitmaps", [])
    return [bitmap["name"] for bitmap in found]


def disk_xml(target: str, image: Path, extra: str = "", *, form: str = "qcow2", driver: str = "") -> str:
    """Write a ``<disk>`` over an image file or, below /dev, a block device."""
    kind, source = ("block", "dev") if image.is_relative_to("/dev") else ("file", "file")
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{form}' {driver}/><source {source}='{image}'/>"
        f"<target dev='{target}' bus='virtio'/>{extra}</disk>"
    )


@contextlib.contextmanager
def loop_device(image: Path, size: int) -> Iterator[Path]:
    """Make a block device over a new file."""
    with image.open("wb") as backing:
        backing.truncate(size)
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    try:
        yield Path(done.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


class Guest:
    """A VM without an operating system: it stays in its firmware, its disks are written from outside."""

    def __init__(self, libvirtd: PrivateLibvirtd, name: str, disks: dict[str, Path], more_devices: str = "") -> None:
        self.libvirtd = libvirtd
        self.name = name
        self.vm: VmId = str(uuid.uuid4())
        self.disks = disks
        self.xml = (
            f"<domain type='qemu'><name>{name}</name><uuid>{self.vm}</uuid><memory unit='MiB'>16</memory>"
            "<vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
            + "".join(disk_xml(target, image) for target, image in disks.items())
            + f"{more_devices}</devices></domain>"
        )

    def define(self) -> None:
        """Make it known to libvirt."""
        path = self.libvirtd.home / f"{self.name}.xml"
        path.write_text(self.xml)
        self.virsh("define", str(path))

    def virsh(self, command: str, *arguments: str) -> str:
        """Run a virsh command."""
        return self.libvirtd.virsh(command, *arguments)

    def start(self) -> None:
        """Start it, paused: it needs no processor time."""
        self.virsh("start", self.name, "--paused")

    def write(self, target: str, offset: str, length: str, pattern: int) -> None:
        """Write through the guest's own device, as the guest would, so that bitmaps see it."""
        number = string.ascii_lowercase.index(target.removeprefix("vd"))
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        self.virsh(
            "qemu-monitor-command", self.name, "--hmp",
            f'qemu-io -d {device} "write -P {pattern} {offset} {length}"',
        )  # fmt: skip

    def qmp(self, command: str, **arguments: object) -> None:
        """Do something behind libvirt's back."""
        text = json.dumps({"execute": command, "arguments": arguments})
        answer = self.virsh("qemu-monitor-command", self.name, text)
        assert "error" not in json.loads(answer), answer

    def remove_bitmap(self, target: str, name: str) -> None:
        """Make a bitmap vanish, as a restored or converted image would."""
        self.qmp("block-dirty-bitmap-remove", node=self.node(target), name=name)

    def node(self, target: str) -> str:
        """Tell QEMU's name of a disk's image."""
        nodes = self.virsh("qemu-monitor-command", self.name, "--hmp", "info block")
        line = next(line for line in nodes.splitlines() if str(self.disks[target]) in line)
        return line.split(":", maxsplit=1)[0]

    def crash(self) -> None:
        """Kill its QEMU."""
        pid = int((self.libvirtd.home / f"run/qemu/{self.name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while "running" in self.state() or "paused" in self.state():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def state(self) -> str:
        """Tell libvirt's word for its state."""
        return self.virsh("domstate", self.name)

    def remove(self) -> None:
        """End it and forget it; killed first, as QEMU takes its time to end by itself."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.libvirtd.home / f"run/qemu/{self.name}.pid").read_text()), signal.SIGKILL)
        for command in (["destroy"], ["undefine", "--checkpoints-metadata"]):
            with contextlib.suppress(RuntimeError):
                self.virsh(command[0], self.name, *command[1:])

"""A guest of a lab host: made from the boot image, defined in the host's libvirt, watched on its console."""

import dataclasses
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from xml.sax.saxutils import escape

from vmreplica.lab.debian import debian_image
from vmreplica.lab.guest_database import make_database_disk
from vmreplica.lab.image import boot_image, cache_dir, set_command_line
from vmreplica.lab.qemu_img import create_qcow2, raw_to_qcow2
from vmreplica.lab.records import BOOT_DISK_RING, DATA_DISK_RING, RING, RecordsReport, check_records
from vmreplica.lab.waiting import until
from vmreplica.model.errors import BadRequest, TimedOut
from vmreplica.model.units import MiB, format_size

if TYPE_CHECKING:
    from vmreplica.lab.host import Host

#: Where ordinary data begins on the boot disk, behind boot partition and records.
FILL_AT: Final = BOOT_DISK_RING + RING
_FILL_SOURCES: Final = ("/usr/lib", "/usr/bin", "/usr/share", "/usr/sbin")
_BLOCK: Final = 4096
_DISKS_MAX: Final = 8
_LETTERS: Final = "abcdefghi"
#: What the guest does with the database's disk.
_PURPOSES: Final = {"sqlite": "database", "postgresql": "root"}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
_TICK: Final = 0.1
_ALIVE: Final = re.compile(r"lab-guest: record (\d+) ")
_AGENT_CHANNEL: Final = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
_BOOTED: Final = re.compile(r"lab-guest: boot complete, last record (\d+) found")


@dataclasses.dataclass(frozen=True, slots=True)
class GuestSpec:
    """What a guest shall be.

    Args:
        name: letters, digits, dot, dash, underscore.
        disks: number of disks: vda boots, all get records.
        size: bytes of each disk.
        interval_ms: milliseconds between records.
        idle: write nothing at all.
        memory: MiB.
        fill: bytes of ordinary system files on vda, besides.
        network: name of the host's network for a network card, or None for no card.
        firmware: what it boots with.
        agent: whether QEMU's guest agent runs in it.
        database: which database is at work in it, on one more disk, without records. With ``postgresql`` that is the
            root of a Debian, which needs memory, and the guest does nothing else.
    """

    name: str
    disks: int = 1
    size: int = 64 * MiB
    interval_ms: int = 200
    idle: bool = False
    memory: int = 160
    fill: int = 0
    network: str | None = None
    firmware: Literal["bios", "efi"] = "bios"
    agent: bool = False
    database: Literal["sqlite", "postgresql"] | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            BadRequest: code ``lab-guest-invalid``, naming the value.
        """
        least = FILL_AT + self.fill
        problems = (
            (_NAME.fullmatch(self.name) is None, f"{self.name!r} is no name for a guest"),
            (not 1 <= self.disks <= _DISKS_MAX, f"a guest has 1 to {_DISKS_MAX} disks, not {self.disks}"),
            (self.size < least, f"disks must have at least {format_size(least)}, not {format_size(self.size)}"),
            (self.interval_ms < 1, f"the interval must be at least 1 ms, not {self.interval_ms}"),
        )
        for wrong, text in problems:
            if wrong:
                raise BadRequest("lab-guest-invalid", text, hint="vmreplica lab guest add --help")


class Guest:
    """A guest on one host."""

    def __init__(self, host: "Host", name: str, images: tuple[Path, ...]) -> None:
        self.host = host
        self.name = name
        #: vda first.
        self.images = images
        self.console = host.layout.images / f"{name}.console"
        #: The database's disk, if it has a database.
        self.database = database_image(host.layout.images, name)

    @property
    def uuid(self) -> str:
        """The domain's UUID."""
        return self.host.virsh("domuuid", self.name).stdout.strip()

    def start(self) -> None:
        """Switch it on."""
        self.host.virsh("start", self.name)

    def stop(self) -> None:
        """Switch it off, hard."""
        self.host.virsh("destroy", self.name)

    def said(self) -> str:
        """Give all that it printed on its console since it was made."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def last_seen(self) -> int | None:
        """Tell the newest record it announced since it last booted, None before the first."""
        return last_announced(self.said().rpartition("boot complete")[2])

    def wait_for(self, pattern: str, *, timeout: float = 240.0, after: int = 0) -> re.Match[str]:
        """Wait until the console says something.

        Args:
            pattern: regular expression.
            timeout: seconds.
            after: console text before this position does not count.

        Raises:
            TimedOut: it does not say it; the message ends with what it said instead (code ``lab-guest-silent``).
        """
        return wait_for_text(lambda: self.said()[after:], pattern, timeout=timeout, who=self.name)

    def wait_booted(self, *, timeout: float = 240.0, after: int = 0) -> int:
        """Wait until it runs; tell the last record it found on its disks."""
        return int(self.wait_for(_BOOTED.pattern, timeout=timeout, after=after)[1])

    def wait_record(self, number: int, *, timeout: float = 240.0) -> int:
        """Wait until it announces a record with at least this number; tell its number."""
        if not until(lambda: (self.last_seen() or 0) >= number, timeout):
            raise TimedOut(
                "lab-guest-silent", f"{self.name} does not come to record {number}, last is {self.last_seen()}"
            )
        return self.last_seen() or 0

    def check(self) -> RecordsReport:
        """Check the records on its images; reliable while it is off."""
        return check_records(self.images)

    def remove(self) -> None:
        """Switch it off, forget it and delete its images."""
        self.host.virsh("destroy", self.name, check=False)
        self.host.virsh("undefine", self.name, "--checkpoints-metadata", "--nvram", check=False)
        for path in (*self.images, self.database, self.console):
            path.unlink(missing_ok=True)


def wait_for_text(text: Callable[[], str], pattern: str, *, timeout: float, who: str) -> re.Match[str]:
    """Wait until a text that grows matches.

    Raises:
        TimedOut: code ``lab-guest-silent``.
    """
    deadline = time.monotonic() + timeout
    said = text()
    while not (match := re.search(pattern, said)):
        if time.monotonic() > deadline:
            raise TimedOut("lab-guest-silent", f"{who} does not say {pattern!r}; it said: {said[-500:]!r}")
        time.sleep(_TICK)
        said = text()
    return match


def last_announced(text: str) -> int | None:
    """Tell the last record that a console text announces."""
    numbers = _ALIVE.findall(text)
    return int(numbers[-1]) if numbers else None


def make_images(directory: Path, spec: GuestSpec, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Make a guest's disks as qcow2 files; vda boots."""
    boot = boot_image(say)
    paths = tuple(directory / f"{spec.name}-vd{letter}.qcow2" for letter in _LETTERS[: spec.disks])
    with tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as scratch:
        raw = Path(scratch) / "vda.raw"
        shutil.copyfile(boot, raw)
        options = f"lab.interval={spec.interval_ms} lab.idle={int(spec.idle)}"
        if spec.database is not None:
            options += f" lab.{_PURPOSES[spec.database]}=vd{_LETTERS[spec.disks]}"
        # A Debian has an agent of its own.
        ours = spec.database != "postgresql"
        set_command_line(raw, options, agent=spec.agent and ours, database=spec.database is not None)
        if spec.fill:
            say(f"putting {format_size(spec.fill)} of system files on the disk")
            fill_with_system_files(raw, FILL_AT, spec.fill)
        raw_to_qcow2(raw, paths[0], spec.size)
    for path in paths[1:]:
        create_qcow2(path, max(spec.size, DATA_DISK_RING + RING))
    if spec.database == "sqlite":
        make_database_disk(database_image(directory, spec.name))
    elif spec.database == "postgresql":
        shutil.copyfile(debian_image(say, cache_dir()), database_image(directory, spec.name))
    return paths


def database_image(directory: Path, name: str) -> Path:
    """Tell where a guest's database has its disk."""
    return directory / f"{name}-database.qcow2"


def fill_with_system_files(disk: Path, offset: int, size: int) -> None:
    """Put the contents of ordinary files at a place of a raw disk, each from a 4 KiB border on, as file systems do."""
    with disk.open("r+b") as file:
        end = offset + size
        while offset < end:
            begun = offset
            for source in _system_files():
                data = source.read_bytes()[: end - offset]
                os.pwrite(file.fileno(), data, offset)
                offset += -(-len(data) // _BLOCK) * _BLOCK
                if offset >= end:
                    return
            if offset == begun:
                raise BadRequest("lab-nothing-to-fill", f"there are no files in {', '.join(_FILL_SOURCES)}")


def domain_xml(spec: GuestSpec, images: tuple[Path, ...], console: Path, domain_type: str) -> str:
    """Describe the guest to libvirt."""
    if spec.database is not None:
        images = (*images, database_image(console.parent, spec.name))
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{escape(str(image))}'/>"
        f"<target dev='vd{letter}' bus='virtio'/></disk>"
        for letter, image in zip(_LETTERS, images, strict=False)
    )
    card = (
        f"<interface type='network'><source network='{escape(spec.network)}'/><model type='virtio'/></interface>"
        if spec.network
        else ""
    )
    channel = _AGENT_CHANNEL if spec.agent else ""
    return (
        f"<domain type='{domain_type}'><name>{spec.name}</name><uuid>{uuid.uuid4()}</uuid>"
        f"<memory unit='MiB'>{spec.memory}</memory><vcpu>1</vcpu>{_os_xml(spec)}<features><acpi/></features>"
        "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash><devices>"
        f"{disks}{card}{channel}<serial type='pty'><log file='{escape(str(console))}' append='on'/><target port='0'/>"
        "</serial><memballoon model='none'/></devices></domain>"
    )


def _os_xml(spec: GuestSpec) -> str:
    if spec.firmware == "bios":
        return "<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>"
    # The kernel is started by the firmware's shell, which secure boot would not allow.
    return (
        "<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>"
        "<firmware><feature enabled='no' name='secure-boot'/></firmware><boot dev='hd'/></os>"
    )


def _system_files() -> Iterator[Path]:
    for root in _FILL_SOURCES:
        for directory, subdirectories, names in os.walk(root):
            subdirectories.sort()
            for name in sorted(names):
                path = Path(directory) / name
                if path.is_file() and not path.is_symlink():
                    yield path

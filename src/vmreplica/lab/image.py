"""The guest's boot disk: the distribution's kernel and busybox in an initramfs, started by syslinux from FAT.

Needs no compiler, no loop device and no network. The result is kept in a cache, named after the kernel's version and
the hash of everything that goes into it.
"""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Final

import zstandard

from vmreplica.lab.commands import run, search_path
from vmreplica.lab.cpio import Archive
from vmreplica.lab.guest_agent import guest_agent, guest_agent_archive
from vmreplica.lab.guest_database import SQLITE, database_archive
from vmreplica.lab.guest_programs import installed
from vmreplica.lab.records import BOOT_DISK_RING
from vmreplica.model.errors import Refused
from vmreplica.model.units import MiB

_SECTOR: Final = 512
_BOOT_AT: Final = MiB
_BOOT_SECTORS: Final = (BOOT_DISK_RING - _BOOT_AT) // _SECTOR
_FAT16_LBA: Final = 0x0E
#: Two of them make the power button heard; the last one is for databases.
_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "button", "evdev", "ext4")
#: Loaded by the guest where there is use for them.
_ON_DEMAND: Final = ("efivarfs", "virtio_console")
#: The kernel's name on the boot disk: UEFI's shell starts nothing without that ending.
_KERNEL: Final = "vmlinuz.efi"
_INITRD: Final = "initrd.gz"
#: QEMU's guest agent and the database, in archives of their own: only guests that shall have them load them.
_AGENT: Final = "agent.gz"
_DATABASE: Final = "database.gz"
_MBR: Final = Path("/usr/lib/syslinux/mbr/mbr.bin")
_UNPACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    ".ko": bytes,
    ".xz": lzma.decompress,
    ".zst": lambda packed: zstandard.ZstdDecompressor().decompressobj().decompress(packed),
    ".gz": gzip.decompress,
}
#: Raise it when the way of building changes without a change of the guest's own files.
_RECIPE: Final = b"3"


def cache_dir() -> Path:
    """Tell where built guests are kept between labs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vmreplica-lab"


def boot_image(say: Callable[[str], None], cache: Path | None = None) -> Path:
    """Give the boot disk (raw, 32 MiB, without the kernel's command line), building it when it is not in the cache.

    Raises:
        Refused: no kernel is installed (code ``lab-needs-kernel``).
    """
    cache = cache or cache_dir()
    version = newest_kernel(Path("/boot"), Path("/lib/modules"))
    final = cache / f"guest-{version}-{_recipe_hash(version)}.raw"
    if final.exists():
        return final
    say(f"building the guest from kernel {version} and busybox (once)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
        _build(Path(scratch), version).rename(final)
    return final


def set_command_line(disk: Path, options: str, *, agent: bool = False, database: bool = False) -> None:
    """Write the kernel's command line onto a raw boot disk, for BIOS and for UEFI.

    Raises:
        Refused: the guest agent or SQLite is wanted and was not there when the image was built (code
            ``lab-needs-tools``).
    """
    initrds = [_INITRD, *([_AGENT] if agent else []), *([_DATABASE] if database else [])]
    if agent and guest_agent() is None:
        raise Refused("lab-needs-tools", "qemu-ga is not installed", hint="apt-get install qemu-guest-agent")
    if database and installed(SQLITE) is None:
        raise Refused("lab-needs-tools", "sqlite3 is not installed", hint="apt-get install sqlite3")
    line = f"console=ttyS0 quiet loglevel=3 panic=5 {options}"
    bios = (
        f"DEFAULT guest\nPROMPT 0\nTIMEOUT 0\nLABEL guest\n  KERNEL {_KERNEL}\n  INITRD {','.join(initrds)}\n"
        f"  APPEND {line}\n"
    )
    uefi = f"@echo -off\r\nfs0:\r\n{_KERNEL} {' '.join(f'initrd={name}' for name in initrds)} {line}\r\n"
    for name, content in (("syslinux.cfg", bios), ("startup.nsh", uefi)):
        with tempfile.NamedTemporaryFile("w", newline="") as file:
            file.write(content)
            file.flush()
            run(["mcopy", "-o", "-i", f"{disk}@@{_BOOT_AT}", file.name, f"::{name}"])


def newest_kernel(boot: Path, modules: Path) -> str:
    """Choose the installed kernel to boot guests from: one for virtual machines before others, then the newest.

    Raises:
        Refused: there is none with its modules (code ``lab-needs-kernel``).
    """
    found = [path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*")]
    usable = [version for version in found if (modules / version).is_dir() and os.access(boot, os.R_OK)]
    if not usable:
        raise Refused(
            "lab-needs-kernel",
            f"no kernel with its modules is installed in {boot}; the lab's guests boot from the distribution's own",
            hint="apt-get install linux-image-cloud-amd64   (Debian) or linux-image-virtual (Ubuntu)",
        )
    return max(usable, key=_kernel_rank)


def _kernel_rank(version: str) -> tuple[bool, tuple[int, ...]]:
    small = any(word in version for word in ("cloud", "virtual", "kvm"))
    return small, tuple(int(digits) for digits in re.findall(r"\d+", version))


def _recipe_hash(version: str) -> str:
    digest = hashlib.sha256(_RECIPE)
    digest.update(_init())
    digest.update(Path(f"/boot/vmlinuz-{version}").read_bytes())
    digest.update(_busybox().read_bytes())
    digest.update(b"" if guest_agent() is None else guest_agent_archive())
    digest.update(database_archive())
    return digest.hexdigest()[:16]


def _init() -> bytes:
    return resources.files("vmreplica.lab").joinpath("guest/init").read_bytes()


def _busybox() -> Path:
    found = shutil.which("busybox", path=search_path())
    if found is None:
        raise Refused("lab-needs-tools", "busybox is not installed", hint="apt-get install busybox-static")
    return Path(found)


def _build(scratch: Path, version: str) -> Path:
    disk = scratch / "boot.raw"
    with disk.open("wb") as file:
        file.write(_master_boot_record())
        file.truncate(BOOT_DISK_RING)
    partition = f"{disk}@@{_BOOT_AT}"
    run(["mformat", "-i", partition, "-T", str(_BOOT_SECTORS), "-h", "64", "-s", "32", "-H", "2048", "::"])
    run(["mcopy", "-i", partition, f"/boot/vmlinuz-{version}", f"::{_KERNEL}"])
    archives = {_INITRD: _initramfs(version), _AGENT: guest_agent_archive(), _DATABASE: database_archive()}
    for name, archive in archives.items():
        (scratch / name).write_bytes(gzip.compress(archive, 6, mtime=0))
        run(["mcopy", "-i", partition, str(scratch / name), f"::{name}"])
    run(["syslinux", "--install", "--offset", str(_BOOT_AT), str(disk)])
    return disk


def _master_boot_record() -> bytes:
    code = _MBR.read_bytes()[:440].ljust(446, b"\0")
    # No one has asked for cylinders since disks grew past 8 GB; the all-ones address says so.
    entry = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", _FAT16_LBA, b"\xfe\xff\xff", _BOOT_AT // _SECTOR, _BOOT_SECTORS
    )
    return code + entry + bytes(48) + b"\x55\xaa"


def _initramfs(version: str) -> bytes:
    archive = Archive()
    for directory in ("bin", "dev", "modules"):
        archive.directory(directory)
    archive.console("dev/console")
    archive.file("init", _init(), 0o755)
    archive.file("bin/busybox", _busybox().read_bytes(), 0o755)
    order = []
    for module, at_once in _modules(version):
        name = module.name.split(".")[0] + ".ko"
        archive.file(f"modules/{name}", _UNPACK[module.suffix](module.read_bytes()), 0o644)
        if at_once:
            order.append(name)
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode(), 0o644)
    return archive.finish()


def _modules(version: str) -> Iterator[tuple[Path, bool]]:
    """Yield the modules in the order of loading, each once, and whether at once; what is built in needs none."""
    seen = set()
    for wanted in (*_MODULES, *_ON_DEMAND):
        shown = run(["modprobe", "--set-version", version, "--show-depends", wanted]).stdout
        for line in shown.splitlines():
            words = line.split()
            if words and words[0] == "insmod" and words[1] not in seen:
                seen.add(words[1])
                yield Path(words[1]), wanted in _MODULES

"""VMs for boot tests: a boot sector that says a text on screen and serial line is all the system they have."""

import struct
import zlib
from pathlib import Path
from typing import Any

from job_kit import Blank, Document, NewBlank, enable, inside, points, qemu_img, relation

from vmreplica.lab import Host

DISPLAY = "<video><model type='vga'/></video>"
LOGIN = "Tiny system 1\r\n\r\nweb login: "
#: Prints the text that follows it on the first serial port and, by the firmware, on the screen; then rests.
_PROGRAM = bytes.fromhex("fc 31c0 8ed8 be1c7c ac 08c0 740c baf803 ee b40e 31db cd10 ebef f4 ebfd")
_SECTOR = 512


def boot_sector(text: str) -> bytes:
    """Make a boot sector that says a text."""
    sector = _PROGRAM + text.encode() + b"\0"
    assert len(_PROGRAM) == 0x1C
    assert len(sector) <= _SECTOR - 2
    return sector.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def talker(host: Host, new_blank: NewBlank, text: str = LOGIN, **how: Any) -> Blank:
    """Give a protected VM that says a text when it boots; on its primary it never does, since it is paused."""
    vm = new_blank(host, start=False, **how)
    _install(vm, text)
    vm.start()
    enable(host, vm.name, every="24h")
    return vm


def _install(vm: Blank, text: str) -> None:
    image = vm.images["vda"]
    raw = image.with_suffix(".raw")
    raw.write_bytes(boot_sector(text).ljust(1 << 20, b"\0"))
    qemu_img("convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()


def drawn(png: bytes) -> tuple[int, int, int]:
    """Read a PNG: width, height, and how many of its filtered bytes are not zero, which says how much is drawn."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        content = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + content)
        chunks[kind] = chunks.get(kind, b"") + content
        at += 12 + length
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    return width, height, sum(map(bool, zlib.decompress(chunks[b"IDAT"])))


def verdict(b: Host, vm: Blank) -> Document | None:
    """Tell what the newest point's boot test came to; None: it had none."""
    found: Document | None = points(b, vm.name)[-1]["boot_test"]
    return found


def expect_no_copy(b: Host, vm: Blank) -> None:
    """See that nothing of a boot test is left but what is kept with the point."""
    store = inside(b, b.layout.store / vm.uuid)
    assert not [name for name in b.guest_names() if name.startswith(f"{vm.name}-")]
    assert not list((store / "tests").glob("*"))
    assert relation(b, vm.name)["tests"] == []
    assert not any(point["holds"] for point in points(b, vm.name))


def store_of(b: Host, vm: Blank) -> Path:
    """Tell where the replica of a VM stands."""
    return inside(b, b.layout.store / vm.uuid)

"""A disk read from end to end without looking at it: `qemu-img map`, then every allocated extent, over NBD.

The extents are read in order, 2 MiB at a time, into one buffer, over one connection to libvirt's export of the frozen
disk, exactly the one that we have. The bytes are thrown away.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbd

from bench.backup import frozen_view
from bench.hosts import Host

MiB = 1 << 20
_REQUEST = 2 * MiB


@dataclass(frozen=True, slots=True)
class PlainRead:
    """One reading: seconds from asking for the frozen view to its end, seconds of map and read, what was read."""

    seconds: float
    read_seconds: float
    #: (start, length) of each allocated extent, bytes.
    extents: Sequence[tuple[int, int]]

    @property
    def read_bytes(self) -> int:
        """Bytes of all extents."""
        return sum(length for _, length in self.extents)


def read_disk(host: Host, guest: str, target: str) -> PlainRead:
    """Read one disk of a running guest."""
    begun = time.perf_counter()
    with frozen_view(host, guest, target) as socket:
        reading = time.perf_counter()
        extents = read_export(socket, target)
        read_seconds = time.perf_counter() - reading
    return PlainRead(time.perf_counter() - begun, read_seconds, extents)


def read_export(socket: Path, name: str) -> Sequence[tuple[int, int]]:
    """Read all that an NBD export has allocated; tell its extents, (start, length) in bytes."""
    extents = _map(socket, name)
    _read(socket, name, extents)
    return extents


def _map(socket: Path, name: str) -> list[tuple[int, int]]:
    command = ["qemu-img", "map", "--output=json", f"nbd+unix:///{name}?socket={socket}"]
    said = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    return [(extent["start"], extent["length"]) for extent in json.loads(said) if extent["data"]]


def _read(socket: Path, name: str, extents: Sequence[tuple[int, int]]) -> None:
    buffer = memoryview(bytearray(_REQUEST))
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.set_pread_initialize(request=False)
    handle.connect_unix(str(socket))
    for start, length in extents:
        for offset in range(start, start + length, _REQUEST):
            cookie = handle.aio_pread(buffer[: min(_REQUEST, start + length - offset)], offset)
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
    handle.shutdown()

"""Small writes by a running guest's own device, so that bitmaps and backup jobs see them as the guest's."""

import os
import random
from collections.abc import Iterable, Sequence

import libvirt
import libvirt_qemu

from bench.backup import named_domain
from bench.hosts import Host

BLOCK = 4096


def scattered(ranges: Iterable[tuple[int, int]], count: int, *, grain: int, seed: int) -> list[int]:
    """Choose blocks of 4 KiB, ascending, each in another piece of ``grain`` bytes.

    Args:
        ranges: (start, length) in bytes from which they are chosen.
        count: how many.
        grain: a multiple of the block.
        seed: the same gives the same.

    Returns:
        Byte offsets.

    Raises:
        ValueError: the ranges have fewer whole pieces than that.
    """
    whole = [(-(-start // grain), (start + length) // grain) for start, length in ranges]
    pieces = [piece for first, end in whole for piece in range(first, end)]
    chance = random.Random(seed)
    return [piece * grain + chance.randrange(0, grain, BLOCK) for piece in sorted(chance.sample(pieces, count))]


def write_blocks(host: Host, guest: str, target: str, offsets: Sequence[int]) -> None:
    """Let a virtio disk of a running guest write a block of bytes that do not compress at each of the offsets.

    Raises:
        RuntimeError: a write failed, with what QEMU said.
    """
    source = host.scratch / f"{guest}-{target}.block"
    connection = libvirt.open(host.libvirt_uri)
    try:
        domain = named_domain(connection, guest)
        for offset in offsets:
            source.write_bytes(os.urandom(BLOCK))
            _qemu_io(domain, target, f"write -q -s {source} {offset} {BLOCK}")
        _qemu_io(domain, target, "flush")
    finally:
        connection.close()
        source.unlink(missing_ok=True)


def _qemu_io(domain: libvirt.virDomain, target: str, act: str) -> None:
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    said = libvirt_qemu.qemuMonitorCommand(
        domain, f'qemu-io -d {device} "{act}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    )
    if said.strip():
        raise RuntimeError(f"{act} on {target}: {said.strip()}")

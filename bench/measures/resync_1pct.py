"""A disk compared with its fingerprint after its bitmap was lost, beside reading the same extents and no more."""

from bench.backup import lose_bitmaps
from bench.content import system_disk
from bench.hosts import peak_memory, virsh
from bench.lab import BenchLab, Cycled
from bench.peers.plain_read import PlainRead, read_disk
from bench.report import Measure, measure, middle, spread
from bench.writes import BLOCK, scattered, write_blocks

MiB = 1 << 20
_GUEST = "resync"
#: Least speed of ours, as a part of the plain reading's.
_SPEED = 0.6
#: Most bytes of a fingerprint, as a part of its disk.
_FINGERPRINT = 0.0025


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Change a hundredth of the disk, lose its bitmap, let it be compared; several times, in turns with the peer."""
    size, used, repetitions = (1024 * MiB, 512 * MiB, 3) if quick else (2048 * MiB, 1536 * MiB, 5)
    changed = size // BLOCK // 100
    lab.add_guest(_GUEST, content=system_disk(size=size, used=used))
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h", "--exclude-disk", "vda")
    ours: list[Cycled] = []
    theirs: list[PlainRead] = []
    for number in range(repetitions):
        theirs.append(read_disk(lab.primary, _GUEST, "vdb"))
        offsets = scattered(theirs[-1].extents, changed, grain=BLOCK, seed=number)
        write_blocks(lab.primary, _GUEST, "vdb", offsets)
        ours.append(_compare(lab))
    measured = _measure(lab, ours, theirs, size=size, changed_bytes=changed * BLOCK)
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    return measured


def _compare(lab: BenchLab) -> Cycled:
    lose_bitmaps(lab.primary, _GUEST)
    cycle = lab.cycle(_GUEST, "resync")
    lab.require_equal(_GUEST, "vdb", cycle.point)
    return cycle


def _measure(lab: BenchLab, ours: list[Cycled], theirs: list[PlainRead], *, size: int, changed_bytes: int) -> Measure:
    seconds, wire_bytes = middle([one.seconds for one in ours]), middle([one.wire_bytes for one in ours])
    read_bytes, plain_seconds = middle([one.read_bytes for one in theirs]), middle([one.seconds for one in theirs])
    (fingerprint,) = lab.primary.lab_host.layout.state_dir.glob(f"fingerprints/{_uuid(lab)}/vdb.fp")
    stored = fingerprint.stat()
    return measure(
        ours={
            "seconds": seconds,
            "all_seconds": spread([one.seconds for one in ours]),
            "read_bytes_per_second": int(read_bytes / seconds),
            "wire_bytes": int(wire_bytes),
            "changed_bytes": changed_bytes,
            "disk_bytes": size,
            "fingerprint_bytes": stored.st_size,
            "fingerprint_allocated_bytes": stored.st_blocks * 512,
            "primary_peak_bytes": peak_memory(lab.primary.agent_pid()),
            "replica_peak_bytes": peak_memory(lab.replica.agent_pid()),
        },
        peer="plain_read",
        theirs={
            "seconds": plain_seconds,
            "all_seconds": spread([one.seconds for one in theirs]),
            "read_bytes_per_second": int(read_bytes / plain_seconds),
            "read_bytes": int(read_bytes),
        },
        ratio=seconds / plain_seconds,
        goal=round(1 / _SPEED, 3),
        wire_ratio=wire_bytes / changed_bytes,
        wire_goal=1.2,
        fingerprint_ratio=stored.st_size / (_FINGERPRINT * size),
        fingerprint_goal=1.0,
    )


def _uuid(lab: BenchLab) -> str:
    return virsh(lab.primary, "domuuid", _GUEST).strip()

"""Makes images of ours from plain dictionaries of guest clusters, and reads them back through QEMU."""

import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.patching import write_patches
from vmreplica.qcow2.segment import (
    BLOCK,
    BLOCKS,
    DATA_START,
    KIND_ZERO,
    KIND_ZSTD,
    RECORD,
    Records,
    append_head,
    clusters_of,
    pack,
    parse,
    patch_kind,
)
from vmreplica.qcow2.sums import SumsWriter
from vmreplica.qcow2.tables import TablesResult, write_tables

POINT = "20260101T000000Z-00000000"
ZERO = bytes(CLUSTER)


def noise(seed: int) -> bytes:
    """A cluster that does not compress."""
    return random.Random(seed).randbytes(CLUSTER)


def text(seed: int) -> bytes:
    """A cluster that compresses well."""
    return (f"line {seed} of a file\n".encode() * 4096)[:CLUSTER]


def with_blocks(cluster: bytes, seed: int) -> bytes:
    """The cluster with some of its blocks changed to noise, text or zeroes."""
    source, changed = random.Random(seed), bytearray(cluster)
    for block in source.sample(range(BLOCKS), source.randint(1, BLOCKS - 1)):
        data = source.choice([source.randbytes(BLOCK), bytes(BLOCK), bytes([source.randint(1, 255)]) * BLOCK])
        changed[block * BLOCK : (block + 1) * BLOCK] = data
    return bytes(changed)


def differing(old: bytes, new: bytes) -> list[int]:
    """Numbers of the blocks in which two clusters differ."""
    return [n for n in range(BLOCKS) if old[n * BLOCK : (n + 1) * BLOCK] != new[n * BLOCK : (n + 1) * BLOCK]]


def segments(
    content: Mapping[int, bytes], size: int, *, each: int = 64, below: Mapping[int, bytes] | None = None
) -> Iterator[tuple[bytes, int]]:
    """Segments of so many clusters each, and the end of their data; patches where only blocks differ from below."""
    place, numbers = DATA_START, sorted(content)
    for number, start in enumerate(range(0, len(numbers), each)):
        part = numbers[start : start + each]
        records, data, patches = _records(part, content, below)
        following = numbers[start + each] if start + each < len(numbers) else clusters_of(size)
        head, buffers = pack(
            point=POINT,
            target="vda",
            number=number,
            data_offset=place,
            next_cluster=following,
            records=records,
            data=data,
            patches=patches,
        )
        place = head.data_end
        yield b"".join(buffers), place


def _records(
    numbers: list[int], content: Mapping[int, bytes], below: Mapping[int, bytes] | None
) -> tuple[Records, list[bytes], list[bytes]]:
    rows: list[tuple[int, int, int]] = []
    data: list[bytes] = []
    patches: list[bytes] = []
    for number in numbers:
        (frame,) = frames.encode(memoryview(content[number]), 1)
        blocks = differing(below.get(number, ZERO), content[number]) if below is not None else []
        if 0 < len(blocks) < BLOCKS:
            raw = b"".join(content[number][n * BLOCK : (n + 1) * BLOCK] for n in blocks)
            patches.append(frames.encode_patch(memoryview(raw), 1))
            rows.append((number, len(patches[-1]), patch_kind(sum(1 << n for n in blocks))))
        elif frame is not None:
            rows.append((number, len(frame), KIND_ZSTD))
            data.append(frame)
        elif rows and rows[-1][2] == KIND_ZERO and sum(rows[-1][:2]) == number:
            rows[-1] = (rows[-1][0], rows[-1][1] + 1, KIND_ZERO)
        else:
            rows.append((number, 1, KIND_ZERO))
    return np.array(rows, RECORD), data, patches


def write_image(
    path: Path,
    content: Mapping[int, bytes],
    size: int,
    backing: Path | None = None,
    *,
    each: int = 64,
    below: Mapping[int, bytes] | None = None,
) -> TablesResult:
    """Write an image as the replica does, and its index and the sums of its patches beside it."""
    records: list[Records] = []
    end = DATA_START
    with path.open("w+b") as image, path.with_suffix(".index").open("wb") as index:
        patched, sums = False, SumsWriter(path.with_suffix(".sums"))
        for number, (body, data_end) in enumerate(segments(content, size, each=each, below=below)):
            segment = parse(body, point=POINT, target="vda", number=number, clusters=clusters_of(size))
            os.pwrite(image.fileno(), segment.data, segment.head.data_offset)
            sums.add(segment.head_bytes, number, write_patches(image.fileno(), segment))
            patched |= segment.head.patch_count > 0
            append_head(index, segment)
            records.append(segment.records)
            end = data_end
        sums.finish()
        name = str(backing.absolute()) if backing is not None else None
        return write_tables(image.fileno(), size=size, data_end=end, records=records, backing=name, patched=patched)


def read_through_qemu(path: Path) -> bytes:
    """The whole disk as QEMU sees it through its chain."""
    raw = path.with_name(path.name + ".raw")
    qemu_img("convert", "-U", "-f", "qcow2", "-O", "raw", str(path), str(raw))
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def flat(content: Mapping[int, bytes], size: int) -> bytes:
    """What a disk of this content reads as."""
    disk = bytearray(clusters_of(size) * CLUSTER)
    for number, data in content.items():
        disk[number * CLUSTER : number * CLUSTER + len(data)] = data
    return bytes(disk[:size])


def qemu_img(*arguments: str) -> str:
    """Run qemu-img; it must succeed."""
    run = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout


def check(path: Path) -> None:
    """The image is sound and leaks nothing, says QEMU."""
    assert "No errors were found" in qemu_img("check", "-f", "qcow2", str(path))

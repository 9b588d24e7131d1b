"""Makes images of ours from plain dictionaries of guest clusters, and reads them back through QEMU."""

import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.segment import (
    DATA_START,
    KIND_ZERO,
    KIND_ZSTD,
    RECORD,
    Records,
    append_head,
    clusters_of,
    pack,
    parse,
)
from vmreplica.qcow2.tables import TablesResult, write_tables

POINT = "20260101T000000Z-00000000"
ZERO = bytes(CLUSTER)


def noise(seed: int) -> bytes:
    """A cluster that does not compress."""
    return random.Random(seed).randbytes(CLUSTER)


def text(seed: int) -> bytes:
    """A cluster that compresses well."""
    return (f"line {seed} of a file\n".encode() * 4096)[:CLUSTER]


def segments(content: Mapping[int, bytes], size: int, *, each: int = 64) -> Iterator[tuple[bytes, int]]:
    """Segments of so many clusters each, and the end of their data."""
    place, numbers = DATA_START, sorted(content)
    for number, start in enumerate(range(0, len(numbers), each)):
        part = numbers[start : start + each]
        records, data = _records(part, content)
        following = numbers[start + each] if start + each < len(numbers) else clusters_of(size)
        head, buffers = pack(
            point=POINT,
            target="vda",
            number=number,
            data_offset=place,
            next_cluster=following,
            records=records,
            data=data,
        )
        place = head.data_end
        yield b"".join(buffers), place


def _records(numbers: list[int], content: Mapping[int, bytes]) -> tuple[Records, list[bytes]]:
    rows: list[tuple[int, int, int]] = []
    data: list[bytes] = []
    for number in numbers:
        (frame,) = frames.encode(memoryview(content[number]), 1)
        if frame is not None:
            rows.append((number, len(frame), KIND_ZSTD))
            data.append(frame)
        elif rows and rows[-1][2] == KIND_ZERO and sum(rows[-1][:2]) == number:
            rows[-1] = (rows[-1][0], rows[-1][1] + 1, KIND_ZERO)
        else:
            rows.append((number, 1, KIND_ZERO))
    return np.array(rows, RECORD), data


def write_image(
    path: Path, content: Mapping[int, bytes], size: int, backing: Path | None = None, *, each: int = 64
) -> TablesResult:
    """Write an image as the replica does, and its index beside it."""
    records: list[Records] = []
    end = DATA_START
    with path.open("w+b") as image, path.with_suffix(".index").open("wb") as index:
        for number, (body, data_end) in enumerate(segments(content, size, each=each)):
            segment = parse(body, point=POINT, target="vda", number=number, clusters=clusters_of(size))
            os.pwrite(image.fileno(), segment.data, segment.head.data_offset)
            append_head(index, segment)
            records.append(segment.records)
            end = data_end
        name = str(backing.absolute()) if backing is not None else None
        return write_tables(image.fileno(), size=size, data_end=end, records=records, backing=name)


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

"""Chains of images as a replica holds them, of the machine's own programs, without a guest."""

import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.content import sample
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.merge import ImageFiles
from vmreplica.qcow2.patching import write_patches
from vmreplica.qcow2.segment import (
    BLOCK,
    BLOCKS,
    DATA_START,
    KIND_ZSTD,
    MAX_PATCHES,
    RECORD,
    SEGMENT_BYTES,
    Records,
    append_head,
    clusters_of,
    pack,
    parse,
    patch_kind,
)
from vmreplica.qcow2.sums import SumsWriter
from vmreplica.qcow2.tables import write_tables

POINT: Final = "20260101T000000Z-00000000"
TARGET: Final = "vda"
_LEVEL: Final = 1
#: Different clusters, and different patches of each number of blocks.
_VARIETY: Final = 1000
_PATCHES: Final = 50
#: Neighbouring clusters that a guest writes together.
_RUN: Final = 16
#: Half of all writes go to this part of the disk.
_HOT: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a cluster gets: a whole one, or some of its blocks."""

    kind: int
    data: bytes


class Content:
    """Compressed clusters and patches of some of the machine's own programs."""

    def __init__(self, source: random.Random, top: Path = Path("/usr/bin")) -> None:
        self._source = source
        self._clusters = list(_clusters(top, _VARIETY))
        self._whole = [
            _Frame(KIND_ZSTD, frame)
            for cluster in self._clusters
            for frame in frames.encode(memoryview(cluster), _LEVEL)
            if frame is not None
        ]
        self._patches = [self._patch(1 + number % 3) for number in range(_PATCHES)]

    def whole(self) -> _Frame:
        """Give a whole cluster."""
        return self._source.choice(self._whole)

    def patch(self) -> _Frame:
        """Give one to three neighbouring blocks of a cluster."""
        return self._source.choice(self._patches)

    def _patch(self, blocks: int) -> _Frame:
        cluster, first = self._source.choice(self._clusters), self._source.randrange(BLOCKS - blocks)
        data = memoryview(cluster)[first * BLOCK : (first + blocks) * BLOCK]
        return _Frame(patch_kind(((1 << blocks) - 1) << first), frames.encode_patch(data, _LEVEL))


def make_chain(folder: Path, *, size: int, points: int, changes: int, seed: int = 1) -> list[ImageFiles]:
    """Make a base that is empty and images over it, each over the one before.

    Args:
        folder: where; it must exist.
        size: of the disk in bytes.
        points: how many images.
        changes: changed clusters in each: half of them in runs, a third single ones, a sixth only in some blocks.
        seed: the same gives the same.
    """
    source = random.Random(seed)
    content = Content(source)
    below = folder / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", below, str(size)], check=True)
    made = []
    for number in range(points):
        image = folder / f"{number}.qcow2"
        files = ImageFiles(image, image.with_suffix(".index"), image.with_suffix(".sums"))
        _write_image(files, _changed(source, content, clusters_of(size), changes), size, below)
        made.append(files)
        below = image
    return made


def _clusters(top: Path, count: int) -> Iterator[bytes]:
    for path in sample(top, count * CLUSTER * 4):
        data = path.read_bytes()
        for start in range(0, len(data) - CLUSTER, CLUSTER):
            yield data[start : start + CLUSTER]
            count -= 1
            if not count:
                return


def _changed(source: random.Random, content: Content, clusters: int, changes: int) -> Mapping[int, _Frame]:
    changed: dict[int, _Frame] = {}
    while len(changed) < changes:
        zone = clusters if source.random() < 0.5 else int(clusters * _HOT)
        start, kind = source.randrange(zone - _RUN), source.randrange(_RUN + 1)
        for place in range(start, start + (1 if kind else _RUN)):
            changed[place] = content.whole() if kind <= _RUN * 2 // 3 else content.patch()
    return changed


def _write_image(files: ImageFiles, changed: Mapping[int, _Frame], size: int, below: Path) -> None:
    place, done = DATA_START, 0
    records: list[Records] = []
    numbers, sums = sorted(changed), SumsWriter(files.sums)
    with files.image.open("w+b") as image, files.index.open("wb") as index:
        while done < len(numbers):
            part = _next_part(numbers[done:], changed)
            done += len(part)
            following = numbers[done] if done < len(numbers) else clusters_of(size)
            body, place = _segment(len(records), part, changed, place, following)
            segment = parse(body, point=POINT, target=TARGET, number=len(records), clusters=clusters_of(size))
            os.pwrite(image.fileno(), segment.data, segment.head.data_offset)
            sums.add(segment.head_bytes, segment.head.number, write_patches(image.fileno(), segment))
            append_head(index, segment)
            records.append(segment.records)
        sums.finish()
        write_tables(image.fileno(), size=size, data_end=place, records=records, backing=below.name, patched=True)


def _next_part(numbers: list[int], changed: Mapping[int, _Frame]) -> list[int]:
    size = patches = 0
    for count, number in enumerate(numbers):
        size += len(changed[number].data)
        patches += changed[number].kind != KIND_ZSTD
        if size > SEGMENT_BYTES or patches > MAX_PATCHES:
            return numbers[:count]
    return numbers


def _segment(
    number: int, part: list[int], changed: Mapping[int, _Frame], place: int, following: int
) -> tuple[bytes, int]:
    chosen = [changed[cluster] for cluster in part]
    rows = [(cluster, len(frame.data), frame.kind) for cluster, frame in zip(part, chosen, strict=True)]
    records: Records = np.array(rows, RECORD)
    head, buffers = pack(
        point=POINT,
        target=TARGET,
        number=number,
        data_offset=place,
        next_cluster=following,
        records=records,
        data=[frame.data for frame in chosen if frame.kind == KIND_ZSTD],
        patches=[frame.data for frame in chosen if frame.kind != KIND_ZSTD],
    )
    return b"".join(buffers), head.data_end

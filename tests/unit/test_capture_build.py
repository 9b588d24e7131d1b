"""How clusters become segments: limits, zeroes, and the position that capture resumes at."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from point_kit import segment_of
from spool_kit import POINT, content, opening

from vmreplica.capture.build import SegmentBuilder
from vmreplica.capture.pieces import Piece, Row
from vmreplica.model.units import CLUSTER, GiB, MiB, TiB
from vmreplica.qcow2.segment import (
    KIND_ZERO,
    KIND_ZSTD,
    MAX_RECORDS,
    SEGMENT_BYTES,
    Segment,
    clusters_of,
    parse,
)
from vmreplica.spool import Spool, SpoolDisk

pytestmark = pytest.mark.main_job


@pytest.fixture
def disk(tmp_path: Path) -> SpoolDisk:
    return Spool(tmp_path, GiB).create(opening(size=TiB)).disk("vda")


def _builder(disk: SpoolDisk, *, keep_zeroes: bool) -> SegmentBuilder:
    return SegmentBuilder(disk, keep_zeroes=keep_zeroes, cancel=threading.Event(), patience=1)


def _piece(first: int, frames: Sequence[bytes | None]) -> Piece:
    rows = [
        Row(cluster, KIND_ZSTD if frame else KIND_ZERO, frame or b"") for cluster, frame in enumerate(frames, first)
    ]
    return Piece(rows, 0, np.empty(0, np.uint64))


def _segments(disk: SpoolDisk) -> list[Segment]:
    return [
        parse(segment_of(disk, number), point=POINT, target="vda", number=number, clusters=clusters_of(disk.size))
        for number in disk.waiting()
    ]


def test_a_segment_closes_at_its_size_and_the_next_goes_on_behind_it(disk: SpoolDisk) -> None:
    builder = _builder(disk, keep_zeroes=False)
    for first in range(0, 320, 32):
        builder.add(_piece(first, content(first, 32)[1]), first + 32)
    builder.flush()
    heads = [segment.head for segment in _segments(disk)]
    assert [head.data_offset for head in heads[1:]] == [head.data_end for head in heads[:-1]]
    assert all(SEGMENT_BYTES <= head.data_length < SEGMENT_BYTES + 2 * CLUSTER for head in heads[:-1])
    assert heads[-1].next_cluster == disk.next_cluster == 320
    assert disk.guest_bytes == 20 * MiB


def test_zeroes_of_a_delta_are_merged_and_those_of_a_whole_copy_left_out(tmp_path: Path) -> None:
    for keep in (True, False):
        disk = Spool(tmp_path / str(keep), GiB).create(opening(size=TiB)).disk("vda")
        builder = _builder(disk, keep_zeroes=keep)
        (frame,) = content(0, 1)[1]
        builder.zeroes(0, 5)
        builder.add(_piece(5, [None, frame, None]), 8)
        builder.zeroes(8, 1000)
        builder.flush()
        (segment,) = _segments(disk)
        zeroes = [(0, 6, KIND_ZERO), (7, 1001, KIND_ZERO)]
        data = (6, len(frame), KIND_ZSTD)
        assert segment.records.tolist() == ([zeroes[0], data, zeroes[1]] if keep else [data])
        assert segment.head.next_cluster == 1008


def test_zeroes_up_to_the_largest_disk_fit_into_records(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening(size=256 * TiB)).disk("vda")
    builder = _builder(disk, keep_zeroes=True)
    builder.zeroes(0, 1 << 32)
    builder.flush()
    (segment,) = _segments(disk)
    assert sum(length for _, length, _ in segment.records.tolist()) == 1 << 32


def test_a_segment_closes_at_its_number_of_records(disk: SpoolDisk) -> None:
    builder = _builder(disk, keep_zeroes=True)
    for cluster in range(0, 2 * MAX_RECORDS + 20, 2):
        builder.zeroes(cluster, 1)
    builder.flush()
    assert [segment.head.record_count for segment in _segments(disk)] == [MAX_RECORDS, 10]
    assert _segments(disk)[0].head.next_cluster == 2 * MAX_RECORDS - 1


def test_a_disk_without_changes_has_no_segment(disk: SpoolDisk) -> None:
    builder = _builder(disk, keep_zeroes=False)
    builder.zeroes(0, clusters_of(disk.size))
    builder.flush()
    assert disk.waiting() == ()
    assert disk.finish().segments == 0

"""Segments under random content and random damage."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.model.errors import Corrupt
from vmreplica.qcow2 import frames
from vmreplica.qcow2.layout import L2_ENTRIES, READS_ZERO, described, l2_tables
from vmreplica.qcow2.segment import KIND_ZERO, KIND_ZSTD, RECORD, Records, pack, parse

pytestmark = pytest.mark.main_job

POINT, CLUSTERS = "20260101T000000Z-00000000", 3 * L2_ENTRIES
FRAME = frames.encode(memoryview(b"ab" * 32768), 1)[0] or b""

#: Gap before a record, and its length: 0 for a compressed cluster, else a run of zeroes.
gaps = st.lists(
    st.tuples(st.one_of(st.integers(0, 3), st.integers(0, 9000)), st.one_of(st.just(0), st.integers(1, 9000))),
    max_size=30,
)


def _records(steps: list[tuple[int, int]]) -> Records:
    rows, cluster = [], 0
    for gap, run in steps:
        cluster += gap
        if cluster + max(1, run) > CLUSTERS:
            break
        rows.append((cluster, run or len(FRAME), KIND_ZERO if run else KIND_ZSTD))
        cluster += max(1, run)
    return np.array(rows, RECORD)


def _body(records: Records) -> bytes:
    count = int((records["kind"] == KIND_ZSTD).sum())
    _, buffers = pack(
        point=POINT,
        target="vda",
        number=0,
        data_offset=65536,
        next_cluster=CLUSTERS,
        records=records,
        data=[FRAME] * count,
    )
    return b"".join(buffers)


@given(gaps)
def test_whatever_is_packed_is_parsed_to_the_same(steps: list[tuple[int, int]]) -> None:
    records = _records(steps)
    segment = parse(_body(records), point=POINT, target="vda", number=0, clusters=CLUSTERS)
    assert segment.records.tolist() == records.tolist()


@given(gaps, st.integers(0), st.integers(1, 255))
def test_a_changed_byte_never_passes(steps: list[tuple[int, int]], place: int, change: int) -> None:
    body = bytearray(_body(_records(steps)))
    body[place % len(body)] ^= change
    with pytest.raises(Corrupt):
        parse(bytes(body), point=POINT, target="vda", number=0, clusters=CLUSTERS)


@given(st.binary(max_size=400))
def test_noise_is_refused_in_our_words(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse(body, point=POINT, target="vda", number=0, clusters=CLUSTERS)
    with contextlib.suppress(Corrupt):
        frames.decode(body)


@given(gaps, st.integers(1, 5))
def test_l2_tables_say_what_a_dictionary_of_the_records_says(steps: list[tuple[int, int]], each: int) -> None:
    records = _records(steps)
    expected: dict[int, int] = {}
    batches, place = [], 65536
    for start in range(0, len(records), each):
        part = records[start : start + each]
        offsets = []
        for cluster, length, kind in part.tolist():
            if kind == KIND_ZSTD:
                offsets.append(place)
                expected[cluster] = place
                place += length
            else:
                expected.update(dict.fromkeys(range(cluster, cluster + length), READS_ZERO))
        batches.append((part, np.array(offsets, np.int64)))
    found: dict[int, int] = {}
    for number, entries, said in l2_tables(batches, READS_ZERO):
        starts = np.where(entries > READS_ZERO, described(entries)[0].astype(np.uint64), entries)
        found.update({number * L2_ENTRIES + int(at): int(starts[at]) for at in np.flatnonzero(said)})
    assert found == expected

"""Index files: appended to, read back, and cut to what is whole after a crash."""

from pathlib import Path

import numpy as np
import pytest

from vmreplica.model.errors import Corrupt
from vmreplica.qcow2.layout import REFCOUNTS, Header, described, descriptors
from vmreplica.qcow2.segment import KIND_ZERO, RECORD, append_head, pack, parse, read_heads, recover_index
from vmreplica.qcow2.tables import fit_refcounts

pytestmark = pytest.mark.main_job

POINT = "20260101T000000Z-00000000"


def _write(path: Path, count: int) -> list[int]:
    """An index of so many segments; the offsets where each entry ends."""
    ends = []
    with path.open("wb") as fh:
        for number in range(count):
            rows = np.array([(number * 10 + n * 2, 1, KIND_ZERO) for n in range(number)], RECORD)
            _, buffers = pack(
                point=POINT, target="vda", number=number, data_offset=65536, next_cluster=99, records=rows, data=[]
            )
            append_head(fh, parse(b"".join(buffers), point=POINT, target="vda", number=number, clusters=99))
            ends.append(fh.tell())
    return ends


def test_entries_are_read_back_in_the_order_they_came(tmp_path: Path) -> None:
    path = tmp_path / "vda.index"
    _write(path, 4)
    with path.open("rb") as fh:
        entries = list(read_heads(fh))
    assert [head.number for head, _ in entries] == [0, 1, 2, 3]
    assert entries[3][1]["cluster"].tolist() == [30, 32, 34]


def test_a_cut_at_any_byte_keeps_exactly_the_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "vda.index"
    ends = _write(path, 3)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        valid = recover_index(path)
        assert valid == max([end for end in ends if end <= length], default=0)
        assert path.read_bytes() == whole[:valid]


def test_damage_at_any_byte_keeps_exactly_what_is_before_it(tmp_path: Path) -> None:
    path = tmp_path / "vda.index"
    ends = _write(path, 3)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        with pytest.raises(Corrupt, match=r"vda\.index"), path.open("rb") as fh:
            list(read_heads(fh))
        assert recover_index(path) == max([end for end in ends if end <= place], default=0)


def test_an_index_that_is_whole_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vda.index"
    _write(path, 3)
    before = path.read_bytes()
    assert recover_index(path) == len(before)
    assert path.read_bytes() == before


@pytest.mark.parametrize("clusters", [1, 2, REFCOUNTS - 3, REFCOUNTS - 2, REFCOUNTS - 1, REFCOUNTS, 5_000_000, 2**31])
def test_refcount_blocks_cover_the_file_and_themselves_without_waste(clusters: int) -> None:
    blocks, table = fit_refcounts(clusters)
    total = clusters + blocks + table
    assert blocks * REFCOUNTS >= total
    assert (blocks - 2) * REFCOUNTS < total
    assert table * 8192 >= blocks


def test_descriptors_name_exactly_the_sectors_that_a_frame_touches() -> None:
    offsets = np.array([65536, 65536 + 511, 65536 + 512, (1 << 50) + 1], np.int64)
    lengths = np.array([512, 2, 65600, 15], np.int64)
    starts, ends = described(descriptors(offsets, lengths))
    assert starts.tolist() == offsets.tolist()
    assert ends.tolist() == [-(-(o + n) // 512) * 512 for o, n in zip(offsets.tolist(), lengths.tolist(), strict=True)]


def test_a_header_is_read_back_and_a_foreign_one_is_refused() -> None:
    header = Header(
        size=512 * 7,
        l1_offset=65536,
        l1_entries=1,
        refcount_offset=131072,
        refcount_clusters=1,
        backing="../p/vda.qcow2",
    )
    raw = header.pack()
    assert Header.unpack(raw, "vda.qcow2") == header
    for place in (0, 7, 23, 35, 63, 79, 99, 103, 104):
        broken = bytearray(raw)
        broken[place] ^= 1
        with pytest.raises(Corrupt, match=r"vda\.qcow2"):
            Header.unpack(bytes(broken), "vda.qcow2")
    with pytest.raises(Corrupt):
        Header.unpack(raw[:50], "vda.qcow2")

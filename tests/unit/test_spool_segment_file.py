"""A segment of the spool as it is sent: in pieces, again if need be, and never mistaken for a fault of the line."""

import os
from pathlib import Path

import pytest

from vmreplica.model.body import joined
from vmreplica.model.errors import Corrupt
from vmreplica.model.units import KiB, MiB
from vmreplica.spool.segment_file import SegmentFile

pytestmark = pytest.mark.main_job


@pytest.mark.parametrize("size", [0, 1, 256 * KiB - 1, 256 * KiB, 256 * KiB + 1, 3 * MiB + 17])
def test_the_pieces_are_the_file_each_time_they_are_asked_for(tmp_path: Path, size: int) -> None:
    path = tmp_path / "segment"
    path.write_bytes(content := os.urandom(size))
    with SegmentFile(path) as body:
        assert body.size == size
        assert joined(body) == content
        next(body.pieces(), None)
        assert joined(body) == content


def test_all_pieces_are_read_into_the_same_small_memory(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(os.urandom(MiB))
    with SegmentFile(path) as body:
        memories = {id(memoryview(piece).obj) for piece in body.pieces()}
        assert len(memories) == 1
        assert max(len(piece) for piece in body.pieces()) == 256 * KiB


def test_a_file_that_was_cut_short_or_cannot_be_read_is_the_spool_s_fault(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(MiB))
    with SegmentFile(path) as body:
        os.truncate(path, 300 * KiB)
        with pytest.raises(Corrupt, match="ends at 307200") as caught:
            joined(body)
        assert caught.value.code == "spool-damaged"
    with pytest.raises(Corrupt, match="cannot be read"):
        joined(body)

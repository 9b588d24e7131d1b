"""Sums of patches: taken as blocks come, kept with the index, and nothing wrong passes for right."""

from pathlib import Path

import numpy as np
import pytest
from point_kit import VM
from repository_kit import Primary, fill, new_replica, noise, open_repository, with_blocks

from vmreplica.model.errors import Corrupt
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.patching import stored_sums
from vmreplica.qcow2.segment import split
from vmreplica.qcow2.sums import UNKNOWN, SumsReader, SumsWriter, block_sums, blocks_in
from vmreplica.repository import Replica
from vmreplica.repository.layout import Layout

pytestmark = pytest.mark.points


def _entries(path: Path) -> list[bytes]:
    """Heads with records of an index."""
    found, raw = [], path.read_bytes()
    while raw:
        _head, _records, head_bytes = split(raw)
        found.append(head_bytes)
        raw = raw[len(head_bytes) + 8 :]
    return found


def _read_all(path: Path, entries: list[bytes]) -> None:
    with SumsReader(path) as reader:
        for entry in entries:
            head, records, head_bytes = split(entry)
            reader.of(head_bytes, head.number, records)


def _assert_right(replica: Replica, point: str) -> int:
    """The sums of a disk are those of the blocks in its image; tell how many."""
    layout = Layout(replica.dir)
    image, blocks = layout.image(point, "vda"), 0
    with SumsReader(layout.sums(point, "vda")) as reader, image.open("rb") as data:
        for head_bytes in _entries(layout.index(point, "vda")):
            head, records, _ = split(head_bytes)
            sums = reader.of(head_bytes, head.number, records)
            assert sums.tolist() == stored_sums(data.fileno(), records, head.patches_at, image).tolist()
            blocks += len(sums)
        assert reader.ended()
    return blocks


def test_each_block_of_a_patch_has_its_sum_and_a_point_without_patches_has_no_file(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(patches=True, each=3)
    fill(replica, primary, 4)
    layout = Layout(replica.dir)
    assert not layout.sums(min(primary.expected), "vda").exists()
    assert _assert_right(replica, str(primary.latest)) > 10
    assert not list(layout.root.glob("**/*.journal"))


@pytest.mark.parametrize("lost", ["nothing", "all", "half an entry"])
def test_what_a_crash_takes_of_the_sums_is_summed_again(lost: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(patches=True, each=2)
    primary.send(replica, {"vda": {n: noise(n) for n in range(12)}})
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": {n: with_blocks(noise(n), n) for n in range(12)}})
    replica.open_point(opening)
    for number in (4, 1, 0, 3):
        replica.put_segment(opening.point, "vda", number, segments["vda"][number])
    journal = Layout(replica.dir).incoming / opening.point / "vda.sums.journal"
    if lost != "nothing":
        journal.write_bytes(b"" if lost == "all" else journal.read_bytes()[:-9])
    again = open_repository(tmp_path).replica(VM)
    for number in (5, 2):
        again.put_segment(opening.point, "vda", number, segments["vda"][number])
    again.complete(opening.point, closing)
    assert _assert_right(again, opening.point) > 10


def test_every_single_flipped_bit_in_the_sums_is_noticed_and_the_next_segment_can_be_read(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(patches=True, each=1)
    primary.send(replica, {"vda": {0: noise(0), 1: noise(1)}})
    primary.send(replica, {"vda": {n: noise(n)[:-1] + b"\0" for n in range(2)}})
    layout = Layout(replica.dir)
    path, entries = layout.sums(str(primary.latest), "vda"), _entries(layout.index(str(primary.latest), "vda"))
    raw = path.read_bytes()
    for bit in range(len(raw) // 2 * 8):
        wrong = bytearray(raw)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with SumsReader(path) as reader:
            head, records, head_bytes = split(entries[0])
            with pytest.raises(Corrupt, match="sums of segment 0"):
                reader.of(head_bytes, head.number, records)
            head, records, head_bytes = split(entries[1])
            assert len(reader.of(head_bytes, head.number, records)) == 1


def test_sums_that_end_early_or_belong_to_other_records_are_refused(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(patches=True, each=1)
    primary.send(replica, {"vda": {0: noise(0), 1: noise(1)}})
    primary.send(replica, {"vda": {n: noise(n)[:-1] + b"\0" for n in range(2)}})
    layout = Layout(replica.dir)
    path, entries = layout.sums(str(primary.latest), "vda"), _entries(layout.index(str(primary.latest), "vda"))
    raw = path.read_bytes()
    for wrong in (b"", raw[:-1], raw[len(raw) // 2 :]):
        path.write_bytes(wrong)
        with pytest.raises(Corrupt):
            _read_all(path, entries)


def test_sums_are_carried_over_block_by_block_and_what_was_never_known_stays_unknown(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(patches=True)
    fill(replica, primary, 2)
    layout, point = Layout(replica.dir), str(primary.latest)
    with layout.index(point, "vda").open("rb") as fh:
        patched = [(head, records) for head, records in read_heads(fh) if head.patch_count]
    entries = [entry for entry in _entries(layout.index(point, "vda")) if split(entry)[0].patch_count]
    out = tmp_path / "x.sums"
    writer = SumsWriter(out)
    with SumsReader(tmp_path / "none") as reader:
        assert not reader.known
        for entry, (head, records) in zip(entries, patched, strict=True):
            sums = reader.of(entry, head.number, records)
            assert len(sums) == blocks_in(records) > 0
            assert not (sums != UNKNOWN).any()
            writer.add(entry, head.number, sums)
    writer.finish()
    with SumsReader(out) as reader:
        assert reader.of(entries[0], patched[0][0].number, patched[0][1]).tolist() == [0] * blocks_in(patched[0][1])
    SumsWriter(out).finish()
    assert not out.exists(), "no patch, no file"


def test_the_sum_of_a_block_is_never_the_mark_of_an_unknown_one() -> None:
    assert block_sums(bytes(8192)).tolist() == [block_sums(bytes(4096))[0]] * 2
    assert (block_sums(bytes(8192)) != np.uint64(UNKNOWN)).all()

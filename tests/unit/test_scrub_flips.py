"""A bit flipped in any byte class of any file of a point is found and named, and what it spoils is refused."""

import contextlib
import datetime as dt
from pathlib import Path

import numpy as np
import pytest
from point_kit import make_opening
from repository_kit import SIZE, START, Primary, fill, new_replica, noise, with_blocks
from scrub_kit import flipped, reads, scrub, some_offsets

from vmreplica.failover.sound import require_sound
from vmreplica.fsio.packed import pack_file
from vmreplica.model.damage import Damage
from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layout import Header
from vmreplica.qcow2.segment import BLOCK, KIND_ZSTD, is_patch, patch_masks
from vmreplica.repository import Replica
from vmreplica.repository.folding import Guidance
from vmreplica.repository.layout import Layout
from vmreplica.repository.machine import machine_files
from vmreplica.repository.merging import rebase

pytestmark = pytest.mark.points
NOW = START + dt.timedelta(days=1)
EACH = 6
GUIDE = Guidance()
NVRAM = b"\x01\x02" * 5000


def _history(tmp_path: Path) -> tuple[Replica, Primary, list[str]]:
    """A base, a point with whole clusters, patches and zeroes over it, and one over that."""
    replica, primary = new_replica(tmp_path, keep=9), Primary(patches=True, each=5)
    primary.send(replica, {"vda": {n: noise(n) for n in range(12)}})
    changes = {n: with_blocks(noise(n), n) for n in range(6)} | {6: noise(66), 7: bytes(CLUSTER), 20: noise(20)}
    primary.send(replica, {"vda": changes})
    primary.send(replica, {"vda": {0: noise(100)}})
    return replica, primary, sorted(primary.expected)


def _ends(image: Path, index: Path) -> tuple[int, Header]:
    with index.open("rb") as fh:
        end = max(head.data_end for head, _records in read_heads(fh))
    return -(-end // CLUSTER) * CLUSTER, Header.unpack(image.read_bytes()[:CLUSTER], "", overlay=True)


def _nvram(replica: Replica, point: str) -> bytes | None:
    try:
        return machine_files(replica.dir, replica.point(point))["nvram"]
    except Corrupt:
        return None


def _assert_named(replica: Replica, point: str, what: str) -> tuple[Damage, ...]:
    found = scrub(replica, point)
    assert found.damages, what
    assert {damage.what for damage in found.damages} == {what}
    assert all(damage.point == point for damage in found.damages)
    return found.damages


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    for threads in (1, 2):
        for point in points:
            found = scrub(replica, point, threads=threads)
            assert (found.damages, found.repaired, found.remarks) == ((), (), ())
    replica.update(keep=1)
    fill(replica, primary, 3)
    replica.apply_retention()
    found = scrub(replica, str(primary.latest))
    assert (found.damages, found.repaired, found.remarks) == ((), (), ())


def test_a_flipped_bit_in_a_compressed_cluster_is_found_and_no_consumer_gets_it(tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    image, index = replica.image(points[0], "vda"), Layout(replica.dir).index(points[0], "vda")
    with index.open("rb") as fh:
        head, records = next(read_heads(fh))
    assert (records["kind"] == KIND_ZSTD).all()
    ends = head.data_offset + np.cumsum(records["length"].astype(np.int64))
    for offset in some_offsets(head.data_offset, int(ends[-1]), EACH, 1):
        cluster = int(records["cluster"][np.searchsorted(ends, offset, "right")])
        with flipped(image, offset, offset % 8):
            (damage,) = _assert_named(replica, points[0], "data")
            assert (damage.disk, damage.guest_offset, damage.length) == ("vda", cluster * CLUSTER, CLUSTER)
            assert reads(image) in {None, primary.expected[points[0]]["vda"]}, "an error, never wrong data"
            replica.damages.record(points[0], [damage], NOW)
            with pytest.raises(Corrupt, match=f"vda from byte {cluster * CLUSTER}"):
                require_sound("web", replica.points(), points[0], even_damaged=False)
            replica.damages.record(points[0], [], NOW)


def test_a_flipped_bit_in_a_patch_would_be_served_by_qemu_and_is_refused_by_us(tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    image, index = replica.image(points[1], "vda"), Layout(replica.dir).index(points[1], "vda")
    served = 0
    with index.open("rb") as fh:
        segments = [(head, records[is_patch(records)]) for head, records in read_heads(fh) if head.patch_count]
    for head, rows in segments:
        for place, (cluster, mask) in enumerate(zip(rows["cluster"].tolist(), patch_masks(rows).tolist(), strict=True)):
            block = mask.bit_length() - 1
            offset = head.patches_at + place * CLUSTER + block * BLOCK + 7 * place
            with flipped(image, offset, place % 8):
                (damage,) = _assert_named(replica, points[1], "patch")
                assert (damage.guest_offset, damage.length) == (cluster * CLUSTER + block * BLOCK, BLOCK)
                served += reads(image) != primary.expected[points[1]]["vda"]
                replica.damages.record(points[1], [damage], NOW)
                affected = [points[1]] if cluster == 0 else points[1:]
                assert replica.damages.quarantined() == set(affected), "the last point has cluster 0 itself"
                for point in affected:
                    with pytest.raises(Corrupt):
                        require_sound("web", replica.points(), point, even_damaged=False)
                replica.damages.record(points[1], [], NOW)
    assert served == sum(len(rows) for _head, rows in segments), "QEMU knows no better"


@pytest.mark.parametrize("number", [0, 1])
def test_a_flipped_bit_in_header_or_tables_is_found_and_named_by_what_it_serves(number: int, tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    layout, point = Layout(replica.dir), points[number]
    image, index = replica.image(point, "vda"), layout.index(point, "vda")
    tables, header = _ends(image, index)
    places = {
        "header": [*some_offsets(0, len(header.pack()), EACH, 2), 3000],
        "table": some_offsets(tables, header.l1_offset + 8, EACH, 3),
        "refcounts": some_offsets(header.l1_offset + CLUSTER, image.stat().st_size, EACH, 4),
    }
    for what, offsets in places.items():
        for offset in offsets:
            with flipped(image, offset, offset % 8):
                (damage,) = _assert_named(replica, point, what)
                assert damage.length == (0 if what == "refcounts" else SIZE)
                found = scrub(replica, point, repair=True)
                assert not found.damages
                assert [one.what for one in found.repaired] == [what]
                assert not scrub(replica, point).damages, "put right in place, from the index"
                assert reads(image) == primary.expected[point]["vda"]


def test_a_flipped_bit_in_index_or_sums_is_found_and_touches_no_reader(tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    layout, point = Layout(replica.dir), points[1]
    for path, what in ((layout.index(point, "vda"), "index"), (layout.sums(point, "vda"), "sums")):
        right = path.read_bytes()
        for offset in some_offsets(0, len(right), EACH, 5):
            with flipped(path, offset, offset % 8):
                (damage,) = _assert_named(replica, point, what)
                assert (damage.disk, damage.length, damage.misleads) == ("vda", 0, False)
                assert damage.file == path.name
                if what == "sums":
                    found = scrub(replica, point, repair=True)
                    assert [one.what for one in found.repaired] == ["sums"]
                    assert not scrub(replica, point).damages, "taken again"
                path.write_bytes(right)
        for cut in (0, 1, len(right) - 1):
            path.write_bytes(right[:cut])
            _assert_named(replica, point, what)
        path.write_bytes(right)
    assert reads(replica.image(point, "vda")) == primary.expected[point]["vda"]


def test_a_damaged_index_does_not_hide_damaged_data(tmp_path: Path) -> None:
    replica, _primary, points = _history(tmp_path)
    layout, point = Layout(replica.dir), points[1]
    index = layout.index(point, "vda")
    with index.open("rb") as fh:
        last = [(head, records) for head, records in read_heads(fh) if head.data_length][-1]
    with flipped(index, 200, 1), flipped(replica.image(point, "vda"), last[0].data_offset + 50, 1):
        found = scrub(replica, point).damages
    assert {damage.what for damage in found} == {"index", "data"}


@pytest.mark.parametrize("file", ["definition.xml", "nvram.zst", "manifest.json", "manifest.spare.json"])
def test_a_flipped_bit_in_what_is_no_disk_is_found(file: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    opening = primary.opening()
    opening = make_opening(
        opening.point, primary.sizes, parent=None, kind="initial", instant=opening.instant, epoch=0,
        checkpoint=None, interval=60, keep=3, machine=(pack_file("nvram", NVRAM),),
    )  # fmt: skip
    primary.send(replica, {"vda": {0: noise(0)}}, opening=opening)
    point, path = opening.point, replica.dir / "points" / opening.point / file
    right = path.read_bytes()
    for offset in some_offsets(0, len(right), 12, 6):
        with flipped(path, offset, offset % 8) if "manifest" not in file else contextlib.nullcontext():
            if "manifest" in file:
                path.write_bytes(right[:offset] + bytes([right[offset] ^ 1 << offset % 8]) + right[offset + 1 :])
                found = scrub(replica, point)
                assert [(one.what, one.file) for one in found.repaired] == [("manifest", file)]
                assert path.read_bytes() == right, "put right from the other one"
            elif file == "definition.xml" or _nvram(replica, point) != NVRAM:
                # (A bit of the packed form that means nothing may be anything: what it unpacks to is what counts.)
                (damage,) = _assert_named(replica, point, "definition" if "xml" in file else "machine")
                assert damage.file == file
                replica.damages.record(point, [damage], NOW)
                with pytest.raises(Corrupt, match=file):
                    require_sound("web", replica.points(), point, even_damaged=False)
                replica.damages.record(point, [], NOW)
    assert not scrub(replica, point).damages


def test_a_flipped_bit_in_a_folded_base_is_found_whatever_it_is_in(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=2), Primary({"vda": SIZE}, patches=True)
    fill(replica, primary, 6)
    replica.apply_retention()
    point = min(manifest.point for manifest in replica.manifests())
    layout = Layout(replica.dir)
    image = replica.image(point, "vda")
    raw = image.read_bytes()
    header = Header.unpack(raw[:CLUSTER], "")
    l2 = int.from_bytes(raw[header.l1_offset : header.l1_offset + 8], "big") & 0x00FF_FFFF_FFFF_FE00
    block = int.from_bytes(raw[header.refcount_offset : header.refcount_offset + 8], "big")
    right = primary.expected[point]["vda"]
    places = {
        "header": some_offsets(0, len(header.pack()), EACH, 1),
        "table": [*some_offsets(header.l1_offset, header.l1_offset + 8, 3, 2), *some_offsets(l2, l2 + 512, EACH, 3)],
        "refcounts": [header.refcount_offset + 3, *some_offsets(block, block + CLUSTER, EACH, 4)],
    }
    for what, offsets in places.items():
        for offset in offsets:
            with flipped(image, offset, offset % 8):
                damages = scrub(replica, point).damages
                assert {damage.what for damage in damages} == {what}, offset
                assert max(damage.length for damage in damages) == (0 if what == "refcounts" else SIZE)
    entries = np.frombuffer(raw[l2 : l2 + 512], ">u8")
    for cluster in np.flatnonzero(entries >> np.uint64(62) == 1).tolist():
        start = int(entries[cluster]) & ((1 << 54) - 1)
        with flipped(image, start + 20, cluster % 8):
            (damage,) = _assert_named(replica, point, "data")
            assert damage.guest_offset == cluster * CLUSTER
            assert reads(image) in {None, right}
    sums = layout.table_sums(point, "vda")
    known = sums.read_bytes()
    for offset in some_offsets(0, len(known), EACH, 7):
        sums.write_bytes(known[:offset] + bytes([known[offset] ^ 4]) + known[offset + 1 :])
        _assert_named(replica, point, "sums")
        assert [one.what for one in scrub(replica, point, repair=True).repaired] == ["sums"]
        assert sums.read_bytes() == known
    assert not scrub(replica, point).damages


def test_a_flipped_bit_in_a_merged_image_is_found_whatever_it_is_in(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=9), Primary(patches=True, each=5)
    fill(replica, primary, 6)
    points, layout = sorted(primary.expected), Layout(replica.dir)
    merged = rebase(layout, replica.point(points[4]), points[1], points[2:4], GUIDE)
    replica.recover()
    assert merged.merged
    point, image, index = points[4], layout.image(points[4], "vda"), layout.index(points[4], "vda")
    assert not scrub(replica, point).damages
    with index.open("rb") as fh:
        segments = [(head, records) for head, records in read_heads(fh)]
    tables, header = _ends(image, index)
    patched = [head for head, _records in segments if head.patch_count]
    data = [head for head, _records in segments if head.data_length]
    masks = [patch_masks(records[is_patch(records)]) for _head, records in segments if is_patch(records).any()]
    places = {
        "data": [data[0].data_offset + 40, data[-1].data_offset + data[-1].data_length - 2],
        "patch": [patched[0].patches_at + (int(masks[0][0]).bit_length() - 1) * BLOCK + 9],
        "table": some_offsets(tables, header.l1_offset + 8, 4, 1),
        "refcounts": some_offsets(header.l1_offset + CLUSTER, image.stat().st_size, 4, 2),
        "header": some_offsets(0, len(header.pack()), 8, 3),
    }
    for what, offsets in places.items():
        for offset in offsets:
            with flipped(image, offset, offset % 8):
                _assert_named(replica, point, what)
    for path, what in ((index, "index"), (layout.sums(point, "vda"), "sums")):
        with flipped(path, path.stat().st_size // 2, 3):
            _assert_named(replica, point, what)
    assert not scrub(replica, point).damages
    assert reads(image) == primary.expected[point]["vda"]

"""Merging images into one that stands where the oldest stood, judged by QEMU and a model."""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_kit import POINT, ZERO, check, flat, noise, qemu_img, read_through_qemu, text, with_blocks, write_image

from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.units import CLUSTER, GiB, MiB
from vmreplica.qcow2 import fold
from vmreplica.qcow2.head import BLOCK, KIND_ZSTD, clusters_of, patch_masks, split
from vmreplica.qcow2.index import read_entry, read_heads
from vmreplica.qcow2.merge import ImageFiles, Merged, merge_images, stands_alone
from vmreplica.qcow2.patching import mask_runs, stored_sums
from vmreplica.qcow2.reparent import reparented, tables_digest
from vmreplica.qcow2.sums import SumsReader
from vmreplica.qcow2.tools import image_info

pytestmark = pytest.mark.points

CLUSTERS = 100
SIZE = CLUSTERS * CLUSTER - 60 * 1024

Content = Mapping[int, bytes]

#: What happens to a cluster: zeroes, noise, text, or a change of some of its blocks.
kinds = st.sampled_from([0, 1, 2, 3, 3, 3])
turns = st.lists(st.dictionaries(st.integers(0, CLUSTERS - 1), kinds, max_size=60), min_size=2, max_size=6)


def _nothing(_count: int = 0) -> None:
    """Nobody stops the merge or wants to slow it."""


def _files(image: Path) -> ImageFiles:
    return ImageFiles(image, image.with_suffix(".index"), image.with_suffix(".sums"))


def _merge(
    images: Sequence[Path], out: Path, backing: Path | None, *, size: int = SIZE, stop: Callable[[], None] = _nothing
) -> Merged:
    return merge_images(
        [_files(image) for image in images],
        _files(out),
        point=POINT,
        target="vda",
        size=size,
        backing=str(backing) if backing else None,
        check=stop,
        pace=_nothing,
    )


def _changed(model: Content, number: int, kind: int, seed: int) -> bytes:
    if kind == 3:
        return with_blocks(model.get(number, ZERO), seed)
    return (ZERO, noise(seed), text(seed))[kind]


class Chain:
    """A base and images over it, with what each of them must read as."""

    def __init__(self, folder: Path, first: Content, size: int = SIZE) -> None:
        self.folder, self.size = folder, size
        self.base = folder / "base.qcow2"
        self.images: list[Path] = []
        self.models: list[dict[int, bytes]] = [dict(first)]
        write_image(self.base, first, size)

    def add(self, change: Content, *, size: int | None = None, each: int = 16, alone: bool = False) -> Path:
        """Put an image on top, or one that stands alone."""
        self.size, model = size or self.size, self.models[-1]
        image = self.folder / f"{len(self.images)}.qcow2"
        backing = self.images[-1] if self.images else self.base
        if alone:
            write_image(image, change, self.size, each=each)
        else:
            write_image(image, change, self.size, backing=backing, each=each, below=model)
        self.models.append({**model, **change})
        self.images.append(image)
        return image

    def judge(self, image: Path, model: int = -1) -> None:
        """The image is sound and reads as it must."""
        check(image)
        assert read_through_qemu(image) == flat(self.models[model], self.size)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.dictionaries(st.integers(0, CLUSTERS - 1), st.integers(1, 2), max_size=80), later=turns, cut=st.data())
def test_any_images_merge_to_what_the_newest_reads_as(
    first: dict[int, int], later: list[dict[int, int]], cut: st.DataObject, tmp_path: Path
) -> None:
    chain = Chain(tmp_path, {n: _changed({}, n, kind, n) for n, kind in first.items()})
    for turn, wanted in enumerate(later):
        model = chain.models[-1]
        chain.add({n: _changed(model, n, kind, 1000 * turn + n) for n, kind in wanted.items()})
    low = cut.draw(st.integers(0, len(later) - 1))
    high = cut.draw(st.integers(low + 1, len(later)))
    out, below = tmp_path / "out.qcow2", chain.images[low - 1] if low else chain.base
    _merge(chain.images[low:high], out, below)
    chain.judge(out, high)
    again = tmp_path / "again.qcow2"
    if low:
        _merge([*chain.images[:low], out], again, chain.base)
        chain.judge(again, high)
    merged = again if low else out
    _fold(chain.base, merged, SIZE)
    chain.judge(chain.base, high)


def _same(one: Path, other: Path) -> None:
    qemu_img("compare", "-q", "-f", "qcow2", "-F", "qcow2", str(one), str(other))


def _fold(base: Path, overlay: Path, size: int) -> None:
    index, dead = overlay.with_suffix(".index"), base.with_suffix(".dead")
    beside = fold.Beside(index, dead, base.with_suffix(".tsums"), base.with_suffix(".new"))
    fold.switch(base, fold.prepare_fold(base, overlay, beside, size=size, check=_nothing))
    fold.reclaim(base, dead, lambda: False)


def test_the_sums_of_blocks_come_along_with_them(tmp_path: Path) -> None:
    model = {n: noise(n) for n in range(60)}
    chain = Chain(tmp_path, model)
    for turn in range(3):
        chain.add({n: with_blocks(chain.models[-1][n], 100 * turn + n) for n in range(20 * turn, 60)})
    out = tmp_path / "out.qcow2"
    assert _merge(chain.images, out, chain.base).summed
    found, expected = [], []
    with out.open("rb") as image, _files(out).index.open("rb") as heads, SumsReader(_files(out).sums) as sums:
        while (entry := read_entry(heads)) is not None:
            head, records, head_bytes = split(entry)
            found += sums.of(head_bytes, head.number, records).tolist()
            expected += stored_sums(image.fileno(), records, head.patches_at, out).tolist()
        assert sums.ended()
    assert len(found) > 100
    assert found == expected


def test_a_block_that_went_bad_is_not_put_into_a_new_frame(tmp_path: Path) -> None:
    chain = Chain(tmp_path, {})
    chain.add({3: noise(1), 4: noise(2)})
    image = chain.add({3: with_blocks(chain.models[-1][3], 5)})
    with image.open("r+b") as fh, _files(image).index.open("rb") as heads:
        ((head, records),) = read_heads(heads)
        first_block = next(mask_runs(int(patch_masks(records)[0])))[0] * BLOCK
        fh.seek(head.patches_at + first_block + 9)
        fh.write(b"?")
    out = tmp_path / "out.qcow2"
    with pytest.raises(Corrupt, match="does not have its sum"):
        _merge(chain.images, out, chain.base)
    assert sorted(path.name for path in tmp_path.glob("out*")) == []


def test_images_from_before_there_were_sums_merge_and_say_so(tmp_path: Path) -> None:
    chain = Chain(tmp_path, {n: noise(n) for n in range(9)})
    for turn in range(2):
        image = chain.add({n: with_blocks(chain.models[-1][n], 10 * turn + n) for n in range(9)})
    _files(image).sums.unlink()
    out = tmp_path / "out.qcow2"
    assert not _merge(chain.images, out, chain.base).summed
    chain.judge(out)


def test_a_disk_that_grew_on_the_way_is_merged_at_its_new_size(tmp_path: Path) -> None:
    small, large = 3 * CLUSTER + 512, 600 * MiB
    chain = Chain(tmp_path, {0: noise(0), 2: text(2)}, small)
    chain.add({1: text(1), 3: text(3)[:512].ljust(CLUSTER, b"\0")})
    chain.add({1: with_blocks(text(1), 4), 3: with_blocks(chain.models[-1][3], 5), 8200: noise(3)}, size=large)
    chain.add({8200: with_blocks(noise(3), 8), 5: text(5)})
    out = tmp_path / "out.qcow2"
    _merge(chain.images, out, chain.base, size=large)
    check(out)
    _same(out, chain.images[-1])
    grown = tmp_path / "grown.qcow2"
    shutil.copyfile(chain.base, grown)
    _fold(grown, out, large)
    check(grown)
    _same(grown, chain.images[-1])


@pytest.mark.parametrize("stand", [True, False], ids=["over another one", "alone"])
def test_an_image_that_stands_alone_hides_everything_before_it(tmp_path: Path, *, stand: bool) -> None:
    chain = Chain(tmp_path, {n: noise(n) for n in range(CLUSTERS - 1)})
    chain.add({n: text(n) for n in range(50)})
    chain.models.append({})
    lone = chain.add({40: noise(7), 60: text(6)}, alone=True)
    chain.add({40: with_blocks(noise(7), 1), 2: with_blocks(ZERO, 2), 60: ZERO})
    out = tmp_path / "out.qcow2"
    _merge([*chain.images], out, chain.base if stand else None)
    chain.judge(out)
    assert stands_alone(out) is not stand
    assert stands_alone(lone)
    if stand:
        _fold(chain.base, out, SIZE)
        chain.judge(chain.base)


def test_an_image_over_another_one_does_not_become_one_that_stands_alone(tmp_path: Path) -> None:
    chain = Chain(tmp_path, {1: noise(1)})
    chain.add({2: noise(2)})
    with pytest.raises(Corrupt, match="backing file"):
        _merge(chain.images, tmp_path / "out.qcow2", None)


def test_a_merge_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    chain = Chain(tmp_path, {})
    for turn in range(2):
        chain.add({n: noise(100 * turn + n) for n in range(30)})
    calls = iter(range(1))

    def stop() -> None:
        if next(calls, None) is None:
            raise Conflict("merge-stopped", "enough")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(Conflict):
        _merge(chain.images, tmp_path / "out.qcow2", chain.base, stop=stop)
    assert sorted(tmp_path.iterdir()) == before


def test_many_segments_and_tables_merge_in_bounded_pieces(tmp_path: Path) -> None:
    size, source = 3 * GiB, random.Random(5)
    numbers = sorted(source.sample(range(clusters_of(size)), 700))
    chain = Chain(tmp_path, {n: text(n) for n in numbers[::2]}, size)
    for turn in range(4):
        model = chain.models[-1]
        chosen = source.sample(numbers, 300)
        change = {n: source.choice([ZERO, noise(turn + n), with_blocks(model.get(n, ZERO), n)]) for n in chosen}
        chain.add(change, each=7)
    out, twin = tmp_path / "out.qcow2", chain.images[-1]
    merged = _merge(chain.images, out, chain.base, size=size)
    check(out)
    _same(out, twin)
    assert merged.segments > 1, "8 MiB each"
    assert merged.file_bytes == out.stat().st_size
    assert merged.tables_digest == tables_digest(out, _files(out).index)
    with _files(out).index.open("rb") as heads:
        ends = [(head.data_offset, head.data_end, head.next_cluster) for head, _records in read_heads(heads)]
    assert [start for start, _end, _next in ends[1:]] == [end for _start, end, _next in ends[:-1]]
    assert ends[-1][2] == clusters_of(size)


def test_what_is_copied_is_not_decompressed(tmp_path: Path) -> None:
    chain = Chain(tmp_path, {})
    for turn in range(3):
        chain.add({n: (noise(50 * turn + n), text(n))[n % 2] for n in range(turn, CLUSTERS - 1, 3)})
    expected = {frame for image in chain.images for frame in _frames(image)}
    out = tmp_path / "out.qcow2"
    assert _merge(chain.images, out, chain.base).encoded == 0
    assert set(_frames(out)) <= expected


def _frames(image: Path) -> list[bytes]:
    found: list[bytes] = []
    with _files(image).index.open("rb") as heads:
        for head, records in read_heads(heads):
            place, raw = head.data_offset, image.read_bytes()
            for length in records["length"][records["kind"] == KIND_ZSTD].tolist():
                found.append(raw[place : place + length])
                place += length
    return found


@pytest.mark.parametrize("patched", [False, True])
def test_a_new_header_gives_an_image_another_backing_file(tmp_path: Path, *, patched: bool) -> None:
    chain = Chain(tmp_path, {n: noise(n) for n in range(20)})
    first = chain.add({n: text(n) for n in range(5)})
    change = {n: with_blocks(chain.models[-1][n], n) if patched else noise(90 + n) for n in range(3, 9)}
    top = chain.add(change)
    expected, again = tmp_path / "expected.qcow2", tmp_path / "a-longer-name-of-the-same-image.qcow2"
    again.hardlink_to(first)
    new = reparented(top, _files(top).index, str(again))
    fold.switch(top, new.header)
    fold.switch(top, new.header)
    chain.judge(top)
    assert image_info(top)["backing-filename"] == str(again)
    written = write_image(expected, change, SIZE, backing=again, each=16, below=chain.models[-2])
    assert new.tables_digest == written.digest == tables_digest(top, _files(top).index)
    assert tables_digest(first, _files(first).index) != new.tables_digest


def test_an_image_that_stands_alone_gets_no_backing_file_by_a_header(tmp_path: Path) -> None:
    alone = tmp_path / "alone.qcow2"
    write_image(alone, {1: noise(1)}, SIZE)
    with pytest.raises(Corrupt, match="no backing file"):
        reparented(alone, _files(alone).index, "other.qcow2")

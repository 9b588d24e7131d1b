"""Merging images into one that stands where the oldest stood, judged by QEMU and a model."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_kit import POINT, ZERO, check, flat, noise, qemu_img, read_through_qemu, text, with_blocks, write_image

from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.units import CLUSTER, GiB
from vmreplica.qcow2 import fold
from vmreplica.qcow2.merge import ImageFiles, Merged, merge_images
from vmreplica.qcow2.reparent import reparented, tables_digest

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
    return ImageFiles(image, image.with_suffix(".index"))


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

    def add(self, change: Content, *, size: int | None = None, each: int = 16) -> Path:
        """Put an image on top."""
        self.size, below, model = size or self.size, self.models[-1], self.models[-1]
        image = self.folder / f"{len(self.images)}.qcow2"
        backing = self.images[-1] if self.images else self.base
        write_image(image, change, self.size, backing=backing, each=each, below=below)
        self.models.append(model | change)
        self.images.append(image)
        return image

    def judge(self, image: Path, model: int = -1) -> None:
        """The image is sound and reads as it must."""
        check(image)
        assert read_through_qemu(image) == flat(self.models[model], self.size)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    header = (
        fold.prepare_fold(below, out, out.with_suffix(".index"), tmp_path / "dead", size=SIZE, check=_nothing)
        if not low
        else b""
    )
    if header:
        fold.switch(below, header)
        chain.judge(below, high)

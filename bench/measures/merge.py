"""Merging the images of an hour's points into one, beside a plain copy of what comes out."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.chains import POINT, TARGET, make_chain
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread
from vmreplica.qcow2.merge import ImageFiles, Merged, discard, merge_images

GiB = 1 << 30
_POINTS = 12


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Merge several times, in turns with the peer; both begin with nothing in memory and end with all synced."""
    changes, repetitions = (1000, 3) if quick else (4000, 5)
    folder = lab.replica.scratch / "merge"
    folder.mkdir()
    sources = make_chain(folder, size=4 * GiB, points=_POINTS, changes=changes)
    out = ImageFiles(folder / "out.qcow2", folder / "out.index", folder / "out.sums")
    copy = folder / "copy.qcow2"
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(repetitions):
        seconds, merged = _merge(sources, out, 4 * GiB)
        ours.append(seconds)
        if not number:
            _require_same(sources[-1].image, out.image)
        theirs.append(_copy(out.image, copy))
        copy.unlink()
        discard(out)
    shutil.rmtree(folder)
    return measure(
        ours={
            "seconds": middle(ours),
            "all_seconds": spread(ours),
            "bytes": merged.data_bytes,
            "images": _POINTS,
            "encoded_clusters": merged.encoded,
        },
        peer="cp",
        theirs={"seconds": middle(theirs), "all_seconds": spread(theirs)},
        ratio=middle(ours) / middle(theirs),
        goal=2.0,
    )


def _merge(sources: Sequence[ImageFiles], out: ImageFiles, size: int) -> tuple[float, Merged]:
    for source in sources:
        _forget(source.image)
    begun = time.perf_counter()
    merged = merge_images(
        sources,
        out,
        point=POINT,
        target=TARGET,
        size=size,
        backing="base.qcow2",
        check=lambda: None,
        pace=lambda _count: None,
    )
    return time.perf_counter() - begun, merged


def _copy(image: Path, to: Path) -> float:
    _forget(image)
    begun = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", image, to], check=True)
    subprocess.run(["sync", to], check=True)
    return time.perf_counter() - begun


def _forget(path: Path) -> None:
    """Let the kernel drop what it has of a file in memory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _require_same(one: Path, other: Path) -> None:
    """Refuse a fast merge that is no merge.

    Raises:
        subprocess.CalledProcessError: it is damaged, or reads other than the newest image.
    """
    subprocess.run(["qemu-img", "check", "-q", other], check=True)
    subprocess.run(["qemu-img", "compare", "-q", one, other], check=True)

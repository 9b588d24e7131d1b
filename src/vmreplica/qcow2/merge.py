"""Merging images that stand on each other into one that stands on what the oldest stands on (docs/design/format.md).

Compressed clusters are copied as they are, never decompressed; of patches the newest block wins and is copied as it
is. Only a patch over an older whole cluster of these images becomes a whole cluster that is encoded anew.

Memory: 4 MiB for each image (the records of one of its segments), 8 MiB of data, and for the tables 32 MiB for each
TiB of the result (see ``tables``); the size of the disk does not matter.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.gather import Pool
from vmreplica.qcow2.head import Records, clusters_of
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layers import Layer, of_index, of_zeroes, windows
from vmreplica.qcow2.layout import L2_ENTRIES, Header
from vmreplica.qcow2.overlaying import lay_over
from vmreplica.qcow2.rewriting import SegmentWriter
from vmreplica.qcow2.sums import SumsReader, SumsWriter
from vmreplica.qcow2.tables import write_tables

_MODE: Final = 0o600
_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The files of one disk of a point."""

    image: Path
    index: Path
    #: Sums of its patches; there is no such file beside an image without.
    sums: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What came out."""

    #: Size of the image's file, and digest (hex) of its tables and header, as ``write_tables`` tells them.
    file_bytes: int
    tables_digest: str
    #: In its index.
    segments: int
    #: Of data that were written to it, and how many clusters of that had to be encoded anew.
    data_bytes: int
    encoded: int
    #: Whether the sums of all blocks of its patches are known.
    summed: bool


def merge_images(
    sources: Sequence[ImageFiles],
    out: ImageFiles,
    *,
    point: PointId,
    target: DiskTarget,
    size: int,
    backing: str | None,
    check: Callable[[], None],
    pace: Callable[[int], None],
) -> Merged:
    """Make an image that reads the same as the newest of some.

    Args:
        sources: oldest first, each stands on the one before; the oldest stands on the backing file. One that stands
            alone hides all before it: the result stands alone, or says of the backing file that it is all zero.
        out: the files to write; what is there is replaced. After an error they are gone; after a crash the caller
            removes them.
        point: the one that the result belongs to: it stands in the index.
        target: the disk.
        size: of the newest one's disk in bytes.
        backing: name of the backing file as it shall stand in the header.
        check: called often; raises what shall stop the work.
        pace: told how many bytes were written, often; waits as long as a limit wants.

    Returns:
        What the manifest has to say. The files are synced, the directory is not.

    Raises:
        Corrupt: ``image-damaged``, ``index-damaged``, ``index-order``, ``sums-damaged``, ``frame-broken``.
        OSError: also when the file system is full.
    """

    def wrote(count: int) -> None:
        check()
        pace(count)

    try:
        with ExitStack() as stack:
            layers, images = _opened(sources, size, backing, stack)
            fd = os.open(out.image, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
            stack.callback(os.close, fd)
            index = stack.enter_context(open(out.index, "wb", opener=_private))
            sums = SumsWriter(out.sums)
            stack.callback(sums.abort)
            clusters = clusters_of(size)
            writer = SegmentWriter(
                Pool(images, fd, wrote), index, sums, point=point, target=target, keep_zeroes=backing is not None
            )
            for first, parts in windows(layers, L2_ENTRIES):
                check()
                writer.add(lay_over(parts, first, min(L2_ENTRIES, clusters - first)))
            writer.finish(clusters)
            sums.finish()
            index.flush()
            os.fsync(index.fileno())
            return _finished(fd, out, writer, size=size, backing=backing)
    except BaseException:
        discard(out)
        raise


def discard(files: ImageFiles) -> None:
    """Remove what a merge wrote, as far as it is there."""
    files.image.unlink(missing_ok=True)
    files.index.unlink(missing_ok=True)
    files.sums.unlink(missing_ok=True)


def stands_alone(image: Path) -> bool:
    """Tell whether an image has no backing file.

    Raises:
        Corrupt: ``image-damaged``: it is no qcow2 image.
    """
    return _header(image).backing is None


def _opened(
    sources: Sequence[ImageFiles], size: int, backing: str | None, stack: ExitStack
) -> tuple[list[Layer], list[tuple[int, Path]]]:
    """Open all that counts of the sources; a layer of zeroes stands for what one that stands alone does not say."""
    headers = [_header(source.image) for source in sources]
    if headers[-1].size != size:
        raise Corrupt("image-damaged", f"{sources[-1].image} is of {headers[-1].size} bytes, it should be of {size}")
    alone = [number for number, header in enumerate(headers) if header.backing is None]
    if backing is None and not alone:
        raise Corrupt("image-damaged", f"{sources[0].image} has a backing file, it should stand alone")
    layers, images = [], []
    if alone:
        sources = sources[alone[-1] :]
        layers.append(of_zeroes(clusters_of(size)))
        images.append((-1, sources[0].image))
    for source in sources:
        fd = os.open(source.image, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        images.append((fd, source.image))
        heads = stack.enter_context(source.index.open("rb", buffering=_BUFFER))
        layers.append(of_index(heads, stack.enter_context(SumsReader(source.sums))))
    return layers, images


def _header(image: Path) -> Header:
    with image.open("rb") as fh:
        return Header.unpack(fh.read(CLUSTER), str(image), overlay=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, _MODE)


def _finished(fd: int, out: ImageFiles, writer: SegmentWriter, *, size: int, backing: str | None) -> Merged:
    tables = write_tables(
        fd, size=size, data_end=writer.data_end, records=_records(out.index), backing=backing, patched=writer.patched
    )
    return Merged(
        file_bytes=tables.file_bytes,
        tables_digest=tables.digest,
        segments=writer.segments,
        data_bytes=writer.data_bytes,
        encoded=writer.encoded,
        summed=writer.summed,
    )


def _records(index: Path) -> Iterator[Records]:
    with index.open("rb", buffering=_BUFFER) as fh:
        for _head, records in read_heads(fh):
            yield records

"""Putting right what only maintains a point's files: sums that rotted are taken again of what was found good."""

import contextlib
import os
from pathlib import Path

import numpy as np

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import Manifest
from vmreplica.qcow2.index import read_entry
from vmreplica.qcow2.patching import stored_sums
from vmreplica.qcow2.reader import Image
from vmreplica.qcow2.segment import split
from vmreplica.qcow2.sums import UNKNOWN, SumsReader, SumsWriter
from vmreplica.qcow2.table_sums import sums_of_tables, write_table_sums
from vmreplica.repository.layout import Layout, store_errors

_BUFFER = 1 << 20


def mend_sums(layout: Layout, manifest: Manifest, target: DiskTarget) -> None:
    """Write the sums of a disk's patches, or of its folded image's tables, anew, from what stands in the image.

    Whatever else could be checked of the image was found right. Of a block whose sum was lost nobody can tell any more
    whether it is what came; what is known of the others stays. Nothing else changes the files meanwhile.

    Raises:
        Corrupt: index or image are damaged after all; the old sums stay.
        NoSpace: the store is full; the old sums stay.
    """
    image = layout.image(manifest.point, target)
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with store_errors(image):
            index = layout.index(manifest.point, target)
            if manifest.folded and not index.exists():
                write_table_sums(layout.table_sums(manifest.point, target), sums_of_tables(Image(fd, image)))
            else:
                _mend_patches(fd, image, index, layout.sums(manifest.point, target))
    finally:
        os.close(fd)


def _mend_patches(fd: int, image: Path, index: Path, sums: Path) -> None:
    building = sums.with_name(f".{sums.name}.mended.tmp")
    writer = SumsWriter(building)
    try:
        with index.open("rb", buffering=_BUFFER) as heads, SumsReader(sums) as known:
            while (entry := read_entry(heads)) is not None:
                head, records, _ = split(entry)
                if head.patch_count:
                    taken = stored_sums(fd, records, head.patches_at, image)
                    with contextlib.suppress(Corrupt):
                        found = known.of(entry, head.number, records)
                        taken = np.where(found == UNKNOWN, taken, found)
                    writer.add(entry, head.number, taken)
        writer.finish()
    except BaseException:
        writer.abort()
        building.unlink(missing_ok=True)
        raise
    if building.exists():
        building.replace(sums)

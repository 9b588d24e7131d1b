"""The sums of a disk under construction: taken of blocks as they came, before they were written anywhere.

``<target>.sums.journal`` is appended to as segments come, in any order, and never synced: what a power loss takes of it
is summed again from the image, whose blocks were durable and right when they were acknowledged. When the disk is
complete, ``<target>.sums`` is made of it in the order of the index.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from vmreplica.qcow2.patching import stored_sums
from vmreplica.qcow2.segment import Segment, SegmentHead, split
from vmreplica.qcow2.sums import Sums, SumsWriter, head_sum_of, read_entry_sums, read_journal, sums_entry
from vmreplica.repository.layout import FILE_MODE

_BUFFER = 1 << 20
_JOURNAL = ".sums.journal"


class IncomingSums:
    """Not thread-safe but for what is called under its disk's lock.

    Args:
        index: of the disk; the files stand beside it.
    """

    def __init__(self, index: Path) -> None:
        self._final = index.with_suffix(".sums")
        self._journal = index.with_suffix(_JOURNAL)
        self._fd = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        self._cut()

    def add(self, segment: Segment, sums: Sums) -> None:
        """Take the sums of a segment's patches.

        Raises:
            OSError: the file system is full; nothing was taken.
        """
        if not len(sums):
            return
        entry = sums_entry(segment.head.number, segment.head_bytes, sums)
        place = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, entry) != len(entry):
                os.write(self._fd, entry)  # the file system is full: this one tells so
        except OSError:
            os.ftruncate(self._fd, place)
            raise

    def close(self) -> None:
        """Take nothing more; again is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def finish(self, image: Path, entries: Iterable[bytes]) -> None:
        """Make the sums of the whole disk, durable but for the directory. May be repeated.

        Args:
            image: of the disk.
            entries: heads with records of all segments, in order.

        Raises:
            OSError: also when the file system is full.
        """
        with self._journal.open("rb", buffering=_BUFFER) as journal, image.open("rb") as data:
            known = {number: (head_sum, place) for number, head_sum, place in read_journal(journal)}
            writer = SumsWriter(self._final)
            try:
                for head_bytes in entries:
                    head = split(head_bytes)[0]
                    if not head.patch_count:
                        continue
                    found = known.get(head.number)
                    if found is not None and found[0] == head_sum_of(head_bytes):
                        sums = read_entry_sums(journal, found[1])
                    else:
                        sums = _summed_again(data.fileno(), head, head_bytes, image)
                    writer.add(head_bytes, head.number, sums)
                writer.finish()
            except BaseException:
                writer.abort()
                raise

    def _cut(self) -> None:
        """Cut off what a crash left half written."""
        end = 0
        with self._journal.open("rb", buffering=_BUFFER) as fh:
            for _number, _head_sum, _place in read_journal(fh):
                end = fh.tell()
        os.ftruncate(self._fd, end)


def remove_journals(directory: Path) -> None:
    """Remove what is needed only while a point comes."""
    for journal in directory.glob(f"*{_JOURNAL}"):
        journal.unlink()


def _summed_again(fd: int, head: SegmentHead, head_bytes: bytes, path: Path) -> Sums:
    return stored_sums(fd, split(head_bytes)[1], head.patches_at, path)

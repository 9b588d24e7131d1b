"""Names and the checksum list of an export's directory (docs/design/format.md, "Export")."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.units import KiB
from vmreplica.qcow2.head import MAX_BODY

HEADER: Final = "vmreplica-export.json"
#: The export's own key, encrypted with the passphrase.
KEY: Final = "key.age"
#: The list that ``sha256sum -c`` reads. Written last: an export without it is not complete.
CHECKSUMS: Final = "SHA256SUMS"
#: Lines of the list for the segments that are durable, while the export is being written.
JOURNAL: Final = "checksums.part"
OPENING: Final = "opening.json"
CLOSING: Final = "closing.json"

#: Bytes of a header or an encrypted key at most.
MAX_SMALL: Final = 64 * KiB
#: Encryption adds a header, and 16 bytes to each 64 KiB.
MAX_FILE: Final = MAX_BODY + 64 * KiB
#: Bytes of a line of the list at most.
MAX_LINE: Final = 192
#: Segments in one folder: file systems of removable media become slow, or refuse, with many thousands.
_FOLDER: Final = 4096
_LINE: Final = re.compile(r"([0-9a-f]{64})  ([!-~]{1,120})")


def document_path(point: PointId, name: str, *, sealed: bool) -> str:
    """Tell where an opening or a closing stands."""
    return f"{point}/{name}{_suffix(sealed)}"


def segment_path(point: PointId, target: DiskTarget, number: int, *, sealed: bool) -> str:
    """Tell where a segment stands."""
    return f"{point}/{target}/{number // _FOLDER:05d}/{number:08d}.seg{_suffix(sealed)}"


def segment_number(point: PointId, target: DiskTarget, path: str, *, sealed: bool) -> int | None:
    """Tell which segment of a disk a path is; None if it is none of ours."""
    digits = path.rpartition("/")[2].partition(".")[0]
    if not (digits.isascii() and digits.isdigit()):
        return None
    number = int(digits)
    return number if path == segment_path(point, target, number, sealed=sealed) else None


def checksum_line(digest: str, path: str) -> str:
    """Make a line of the list."""
    return f"{digest}  {path}\n"


def checksum_lines(text: str) -> Iterator[tuple[str, str]]:
    """Read lines of the list, (digest, path); stops at the first that is not whole: there a write was interrupted."""
    for line in text.splitlines(keepends=True):
        match = _LINE.fullmatch(line.removesuffix("\n"))
        if match is None or not line.endswith("\n"):
            return
        yield match[1], match[2]


def ranges_of(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Spell numbers as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return tuple(ranges)


def _suffix(sealed: bool) -> str:
    return ".age" if sealed else ""

"""``scrub.json``: reading and writing when what was checked. It may be lost: then everything's turn comes sooner."""

from pathlib import Path

from vmreplica.model.errors import Corrupt
from vmreplica.model.scrubbing import ScrubRecord
from vmreplica.repository.layout import Layout, read_shape, write_shape


def read_record(root: Path) -> ScrubRecord:
    """Read it; an empty one where there is none, or none that can be read.

    Args:
        root: of the replica, ``Replica.dir``.
    """
    path = Layout(root).scrub
    try:
        return read_shape(path, ScrubRecord) if path.exists() else ScrubRecord()
    except Corrupt:
        return ScrubRecord()


def write_record(root: Path, record: ScrubRecord) -> None:
    """Write it.

    Raises:
        NoSpace: the store is full; the old one stays.
    """
    write_shape(Layout(root).scrub, record)

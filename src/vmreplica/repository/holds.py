"""Holds: one small file each, saying who needs a point and why."""

import datetime as dt
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmreplica.fsio import fsync_dir
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import PointId
from vmreplica.repository.layout import read_shape, store_errors, write_shape
from vmreplica.repository.record import Hold, HoldKind

_ID: Final = re.compile(r"[0-9a-f]{16}")


class Holds:
    """The holds of one replica. Not thread-safe: its replica's lock is held.

    A hold whose file is damaged holds everything: better a point too many than one too few.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._holds: dict[str, Hold] = {}
        self._damaged = False
        for path in sorted(directory.glob("[0-9a-f]*.json")):
            self._load(path)

    def add(
        self,
        point: PointId,
        owner: str,
        reason: str,
        since: dt.datetime,
        *,
        lasting: bool,
        kind: HoldKind = "open",
    ) -> str:
        """Hold a point; tell the hold's id.

        Args:
            point: the point.
            owner: who needs it.
            reason: why.
            since: aware time.
            lasting: whether the hold survives the process.
            kind: what must not happen to the point.

        Raises:
            NoSpace: the store is full; nothing is held.
        """
        hold = Hold(id=secrets.token_hex(8), point=point, owner=owner, reason=reason, since=since, kind=kind)
        if lasting:
            write_shape(self._directory / f"{hold.id}.json", hold)
        self._holds[hold.id] = hold
        return hold.id

    def remove(self, hold_id: str) -> None:
        """Release a hold; one that is gone already is no error."""
        if _ID.fullmatch(hold_id):
            with store_errors(self._directory):
                (self._directory / f"{hold_id}.json").unlink(missing_ok=True)
                fsync_dir(self._directory)
            self._holds.pop(hold_id, None)

    def covers(self, point: PointId) -> bool:
        """Tell whether a point's files may be open: nobody may change them."""
        return self._damaged or any(hold.point == point for hold in self.opened())

    def any(self) -> bool:
        """Tell whether any point's files may be open."""
        return self._damaged or any(True for _ in self.opened())

    def reasons(self, point: PointId) -> tuple[str, ...]:
        """Tell who holds a point and why."""
        return tuple(_told(hold) for hold in self._holds.values() if hold.point == point)

    def opened_by(self, point: PointId) -> tuple[str, ...]:
        """Tell who has a point's files open and why."""
        damaged = ("a damaged record: nobody knows",) if self._damaged else ()
        return (*damaged, *(_told(hold) for hold in self.opened() if hold.point == point))

    def pins(self, point: PointId) -> tuple[Hold, ...]:
        """List what pins a point."""
        return tuple(hold for hold in self._holds.values() if hold.point == point and hold.kind == "pin")

    def reasons_but(self, hold_id: str) -> tuple[str, ...]:
        """Tell who holds any point and why, one hold left out."""
        damaged = ("a damaged record: nobody knows",) if self._damaged else ()
        return (*damaged, *(_told(hold) for hold in self._holds.values() if hold.id != hold_id))

    def opened(self) -> Iterator[Hold]:
        """List who has files of points open, as far as is known."""
        # A copy: a hold may be released meanwhile, while images are changed.
        return (hold for hold in list(self._holds.values()) if hold.kind == "open")

    def _load(self, path: Path) -> None:
        try:
            hold = read_shape(path, Hold)
        except Corrupt:
            self._damaged = True
        else:
            self._holds[hold.id] = hold


def _told(hold: Hold) -> str:
    return f"{'pinned' if hold.kind == 'pin' else hold.owner}: {hold.reason}"

"""A pending point: its opening, its disks, and in the end its closing."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from vmreplica.fsio import no_space, publish_bytes, remove_tree
from vmreplica.model.errors import Conflict, Corrupt, NotFound
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import Consistency, PointClosing, PointOpening
from vmreplica.spool.disk import SpoolDisk
from vmreplica.spool.recover import CLOSING
from vmreplica.spool.room import Room

OPENING = "opening.json"


class SpoolPoint:
    """Everything of one point that is not yet at the replica; thread-safe.

    Args:
        directory: of this point in the spool; holds its opening already.
        opening: what it is.
        room: shared by the whole spool.
        gone: called when the point was discarded.

    Raises:
        Corrupt: what is there cannot be gone on with.
    """

    def __init__(
        self, directory: Path, opening: PointOpening, room: Room, gone: Callable[["SpoolPoint"], None]
    ) -> None:
        self._directory = directory
        self._room = room
        self._gone = gone
        self._discarded = False
        self._disks: dict[DiskTarget, SpoolDisk] = {}
        self.opening = opening
        name = (opening.point, opening.name)
        for spec in opening.disks:
            self._disks[spec.target] = SpoolDisk(directory / spec.target, name, spec, room, self._nothing_waits)
        self._closing = self._read_closing()
        room.occupy(self.waiting_bytes())

    @property
    def closing(self) -> PointClosing | None:
        """Set when all disks were read: the guest is no longer needed for this point."""
        return self._closing

    @property
    def guest_bytes(self) -> int:
        """Guest bytes that the segments so far carry as data, the ones already shipped included."""
        return sum(disk.guest_bytes for disk in self.disks)

    @property
    def disks(self) -> tuple[SpoolDisk, ...]:
        """All disks, in the order of the opening."""
        return tuple(self._disks.values())

    def disk(self, target: DiskTarget) -> SpoolDisk:
        """Give one disk.

        Raises:
            NotFound: ``disk-unknown``.
        """
        try:
            return self._disks[target]
        except KeyError:
            raise NotFound("disk-unknown", f"{self.opening.name} has no disk {target} at this point") from None

    def settle(self, consistency: Consistency, quiesce_failure: str) -> None:
        """Say how consistent the point has become; before anything of it is read or sent.

        Raises:
            NoSpace: the file system is full.
        """
        update = {"consistency": consistency, "quiesce_failure": quiesce_failure}
        opening = self.opening.model_copy(update=update)
        with no_space(self._directory):
            publish_bytes(self._directory / OPENING, opening.model_dump_json().encode(), durable=False)
        self.opening = opening

    def finish(self, guest_bytes: int) -> PointClosing:
        """Say that all disks were read; each was finished before.

        Args:
            guest_bytes: bytes that were read from the guest, for history and statistics.

        Raises:
            NoSpace: the file system is full; the same call may follow.
        """
        disks = tuple(disk.closing or disk.finish() for disk in self.disks)
        closing = PointClosing(disks=disks, guest_bytes=guest_bytes)
        publish_bytes(self._directory / CLOSING, closing.model_dump_json().encode(), durable=False)
        self._closing = closing
        self._room.tell()
        return closing

    def discard(self) -> None:
        """Throw the point away; whoever waits on it is told with Conflict ``point-discarded``."""
        self._discarded = True
        for disk in self.disks:
            disk.forget()
        self._gone(self)
        remove_tree(self._directory)
        with contextlib.suppress(OSError):
            self._directory.parent.rmdir()

    def waiting_bytes(self) -> int:
        """Tell the bytes that are in the spool and not acknowledged."""
        return sum(disk.waiting_bytes() for disk in self.disks)

    def changes(self) -> int:
        """Tell a number that differs after each change in the spool."""
        return self._room.changes()

    def wait(self, seen: int, timeout: float) -> int:
        """Wait until something changed since ``seen``, at most so many seconds; returns the number to wait on next.

        Raises:
            Conflict: ``point-discarded``.
        """
        if self._discarded:
            raise Conflict(
                "point-discarded", f"the pending point of {self.opening.name} was discarded", kind="transient"
            )
        return self._room.wait(seen, timeout)

    def _nothing_waits(self) -> bool:
        return not any(disk.has_waiting() for disk in self._disks.values())

    def _read_closing(self) -> PointClosing | None:
        path = self._directory / CLOSING
        if not path.exists():
            return None
        try:
            closing = PointClosing.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise Corrupt("spool-damaged", f"{path} is damaged: {error}") from error
        if closing.disks != tuple(disk.closing for disk in self.disks):
            raise Corrupt("spool-damaged", f"{path} does not fit the disks beside it")
        return closing

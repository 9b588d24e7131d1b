"""The point under construction of one replica: at most one, found again after a crash."""

import datetime as dt
import threading

from vmreplica.fsio import fsync_dir, remove_tree
from vmreplica.model.errors import BadRequest, Conflict, Corrupt, VmReplicaError
from vmreplica.model.ids import PointId
from vmreplica.model.point import HeldSegments, IncomingPoint, Manifest, PointClosing, PointOpening
from vmreplica.repository.incoming import Incoming
from vmreplica.repository.layout import Layout, make_dir, read_shape, store_errors, write_shape
from vmreplica.repository.publish import publish


class Inbox:
    """Opens, finds, publishes and discards. Only ``require`` and ``held`` may be called from several threads at once.

    Args:
        layout: of the replica.
        min_free: bytes to leave free on the store.
    """

    def __init__(self, layout: Layout, min_free: int) -> None:
        self._layout = layout
        self._min_free = min_free
        self._lock = threading.Lock()
        self._incoming: Incoming | None = None

    def held(self) -> IncomingPoint | None:
        """Tell what is held of the open point; None when there is none."""
        with self._lock:
            incoming = self._incoming
        return incoming.held() if incoming is not None else None

    def require(self, name: str, point: PointId) -> Incoming:
        """Give the open point.

        Raises:
            Conflict: ``point-not-open``: none, or another one.
        """
        with self._lock:
            incoming = self._incoming
        if incoming is None or incoming.opening.point != point:
            raise Conflict(
                "point-not-open",
                f"point {point} of {name} is not open here",
                hint="ask for the position and plan the cycle anew",
                kind="transient",
            )
        return incoming

    def open(self, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or find it again; another one that was open is discarded.

        Raises:
            Conflict: ``opening-differs``.
            NoSpace: the store is full.
        """
        with self._lock:
            incoming = self._incoming
        if incoming is None or incoming.opening.point != opening.point:
            self.discard()
            return self._begin(opening).held()
        if incoming.opening != opening:
            raise Conflict(
                "opening-differs",
                f"point {opening.point} of {opening.name} was opened with other disks or another parent",
                hint="abandon the point and begin a new one",
            )
        if incoming.closed:
            incoming.reopen()
        return incoming.held()

    def publish(
        self, incoming: Incoming, closing: PointClosing, parent: Manifest | None, *, epoch: int, now: dt.datetime
    ) -> Manifest:
        """Publish the open point; a failure leaves it open, unless it can never be published.

        Raises:
            Conflict: ``stale-epoch``: the VM was failed over meanwhile; the point is thrown away.
            BadRequest, Conflict, Corrupt, NoSpace: see ``publish.publish``.
        """
        opening = incoming.opening
        if opening.epoch < epoch:
            self.discard()
            raise Conflict("stale-epoch", f"{opening.name} was failed over while point {opening.point} came")
        incoming.close()
        try:
            manifest = publish(self._layout, incoming, closing, parent=parent, now=now, min_free=self._min_free)
        except Corrupt:
            self.discard()
            raise
        except Exception:
            incoming.reopen()
            raise
        with self._lock:
            self._incoming = None
        return manifest

    def discard(self) -> None:
        """Throw the open point away, if there is one."""
        with self._lock:
            incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.close()
            with store_errors(incoming.directory):
                remove_tree(incoming.directory)

    def retire(self) -> None:
        """Close its files and take nothing more; the files stay."""
        with self._lock:
            incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.close()

    def recover(self, latest: PointId | None) -> None:
        """Find the open point again after a crash; what cannot become the successor of the newest point goes."""
        self.retire()
        for directory in sorted(self._layout.incoming.iterdir(), reverse=True):
            opening = _read_opening(self._layout, directory.name)
            if self._incoming is None and opening is not None and _follows(opening, latest):
                self._incoming = Incoming(directory, opening, self._min_free)
            else:
                remove_tree(directory)

    def _begin(self, opening: PointOpening) -> Incoming:
        directory = self._layout.incoming / opening.point
        with store_errors(directory):
            make_dir(directory)
            write_shape(directory / "opening.json", opening)
            incoming = Incoming(directory, opening, self._min_free)
            fsync_dir(directory)
            fsync_dir(self._layout.incoming)
        with self._lock:
            self._incoming = incoming
        return incoming


def all_held(manifest: Manifest) -> IncomingPoint:
    """Answer about a published point as if it were open: nothing is missing."""
    held = tuple(
        HeldSegments(target=disk.target, ranges=((0, disk.segments),) if disk.segments else ())
        for disk in manifest.disks
    )
    return IncomingPoint(point=manifest.point, held=held)


def check_opening(opening: PointOpening, latest: Manifest | None) -> None:
    """Tell whether a point may follow the newest published one.

    Raises:
        Conflict: ``parent-mismatch``, ``point-older``.
        BadRequest: ``disk-shrunk``: a disk that became smaller is not sent whole.
    """
    newest = latest.point if latest is not None else None
    if opening.parent is not None and opening.parent != newest:
        raise Conflict(
            "parent-mismatch",
            f"point {opening.point} of {opening.name} stands on {opening.parent}, the newest point here is {newest}",
            hint="ask for the position and plan the cycle anew",
            kind="transient",
        )
    if not _follows(opening, newest):
        raise Conflict(
            "point-older",
            f"point {opening.point} of {opening.name} is older than the newest point here, {newest}",
            hint="check the clock of the primary",
        )
    sizes = {disk.target: disk.size for disk in latest.disks} if latest is not None else {}
    shrunk = [disk.target for disk in opening.disks if disk.size < sizes.get(disk.target, 0)]
    partial = [target for target in shrunk if opening.modes.get(target) != "whole"]
    if opening.parent is not None and partial:
        # What the parent has behind the new end would come back to light if the disk grew again.
        raise BadRequest("disk-shrunk", f"disk {partial[0]} of {opening.name} became smaller: a whole copy is needed")


def _follows(opening: PointOpening, latest: PointId | None) -> bool:
    return opening.parent in {None, latest} and (latest is None or opening.point > latest)


def _read_opening(layout: Layout, name: str) -> PointOpening | None:
    try:
        opening = read_shape(layout.incoming / name / "opening.json", PointOpening)
    except VmReplicaError:
        return None
    return opening if opening.point == name else None

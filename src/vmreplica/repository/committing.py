"""Making a VM that was started from a point independent of all points: what that does to the files.

``replica.json`` has the state COMMITTING and, in ``live``, the lowest image of each disk's chain before a byte of them
changes. From then on there are no points here: the disks are folded into those images, whoever else stood on them reads
rubbish. When the VM runs on them, everything else goes; that may be repeated. The directories stay, empty: what runs
knows its image by a path through all of them.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from vmreplica.fsio import fsync_dir, remove_tree
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import DiskTarget
from vmreplica.model.states import Event, State, transition
from vmreplica.qcow2.tools import chain_info
from vmreplica.repository.awaiting import Shared
from vmreplica.repository.holds import Holds
from vmreplica.repository.layout import Layout, allocated_bytes, store_errors
from vmreplica.repository.record import ReplicaRecord


class Relationship(Protocol):
    """What this needs of a replica."""

    @property
    def record(self) -> ReplicaRecord:
        """The relationship as it stands now."""

    def update(self, **changes: Any) -> ReplicaRecord:
        """Change the record durably."""

    def move(self, event: Event) -> State:
        """Make a transition and write it down."""

    def release(self, hold_id: str) -> None:
        """Release a hold."""

    def still(self) -> AbstractContextManager[None]:
        """Let no fold run or begin in the block."""


class Committing:
    """Thread-safe.

    Args:
        layout: of the replica.
        shared: what it shares with receiving and folding.
        holds: of the replica.
        replica: itself.
    """

    def __init__(self, layout: Layout, shared: Shared, holds: Holds, replica: Relationship) -> None:
        self._layout = layout
        self._shared = shared
        self._holds = holds
        self._replica = replica

    def begin(self) -> None:
        """Give all points up for the disks of the VM that was started from one of them; none is written yet.

        Raises:
            Conflict: ``state-forbids``; ``points-held``: somebody else needs a point; ``no-run-layer``.
        """
        with self._shared.receiving, self._replica.still():
            record = self._replica.record
            state = transition(record.name, record.state, Event.COMMIT)
            live = lowest_images(self._layout)
            with self._shared.shelf.lock:
                require_unheld(record, self._holds)
                self._replica.update(state=state, live=live)
                self._shared.shelf.set([])
            self._shared.inbox.discard()

    def remove_layer(self, target: DiskTarget) -> int:
        """Remove the writable layer of a disk that runs on its lowest image; tell how many bytes that gives back.

        Once it is gone, a definition that still names it, since the host lost power just now, starts nothing over data
        that is newer.
        """
        image = self._layout.run / f"{target}.qcow2"
        if not image.exists():
            return 0
        with store_errors(image):
            freed = allocated_bytes(image)
            image.unlink()
            fsync_dir(self._layout.run)
        return freed

    def end(self) -> int:
        """Remove what was folded into the images that the VM runs on; tell how many bytes that gives back."""
        with self._replica.still():
            record = self._replica.record
            freed = remove_folded(self._layout, record.live)
            if record.failover is not None:
                self._replica.release(record.failover.hold)
            self._replica.move(Event.COMMITTED)
        return freed


def lowest_images(layout: Layout) -> dict[DiskTarget, str]:
    """Find the lowest image of ours below each disk of the run layer, relative to the replica's directory.

    What is below that, as a device, is left as it is: it could not hold a bitmap.

    Raises:
        HypervisorError, TimedOut: an image cannot be read.
        Conflict: there is no run layer (``no-run-layer``).
    """
    found = {image.stem: _lowest(layout, image) for image in sorted(layout.run.glob("*.qcow2"))}
    if not found:
        raise Conflict(
            "no-run-layer",
            f"there is no writable layer in {layout.run}: nothing runs on it",
            hint="vmreplica status shows what is going on",
        )
    return found


def require_unheld(record: ReplicaRecord, holds: Holds) -> None:
    """See that nobody but the VM itself needs a point.

    Raises:
        Conflict: ``points-held``.
    """
    others = holds.reasons_but(record.failover.hold if record.failover is not None else "")
    if others:
        raise Conflict(
            "points-held",
            f"the recovery points of {record.name} are still needed: {'; '.join(others)}",
            hint=f"of a test: vmreplica failover {record.name} --test --cancel; otherwise try again in a moment",
        )


def remove_folded(layout: Layout, live: Mapping[DiskTarget, str]) -> int:
    """Remove all that was folded into the images that the VM runs on; tell how many bytes that gives back."""
    kept = {layout.root / path for path in live.values()}
    freed = 0
    with store_errors(layout.root):
        for directory in (layout.run, *layout.points.iterdir()):
            if not directory.is_dir():
                continue
            for path in directory.iterdir():
                if path not in kept:
                    freed += _remove(path)
            fsync_dir(directory)
        for record in (layout.fold, layout.merge, layout.landing):
            record.unlink(missing_ok=True)
        fsync_dir(layout.root)
    return freed


def _lowest(layout: Layout, image: Path) -> str:
    root = Path(os.path.realpath(layout.root))
    chain = [Path(os.path.realpath(link["filename"])) for link in chain_info(image, "qcow2")]
    return str([path for path in chain if path.is_relative_to(root)][-1].relative_to(root))


def _remove(path: Path) -> int:
    if path.is_dir():
        remove_tree(path)
        return 0
    size = allocated_bytes(path)
    path.unlink()
    return size

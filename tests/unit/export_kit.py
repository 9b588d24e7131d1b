"""A first copy's whole journey: spool, directory, import, with the real parts of both hosts and no network."""

import datetime as dt
import threading
from pathlib import Path

import pytest
from point_kit import VM
from repository_kit import OWNER, offer, open_repository
from spool_kit import POINT, add_segment, fill, opening

from vmreplica.model.body import Body, joined
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.export import AwaitedBase, ImportReport
from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId
from vmreplica.model.point import IncomingPoint, PointClosing, PointOpening, PointSummary
from vmreplica.model.units import GiB
from vmreplica.parcel import Secret, prepare_export
from vmreplica.peer.wire import Hello, RunsHere
from vmreplica.receive import Receiver, import_export
from vmreplica.repository import Replica, Repository
from vmreplica.ship import DirectoryWire, ship_point
from vmreplica.spool import Spool, SpoolPoint

HERE = "c" * 32
DELTA = "20260102T000500Z-00000002"


class Near:
    """The replica's receiver as a wire."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Open."""
        return self._receiver.open_point(OWNER, opening)

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Put."""
        self._receiver.put_segment(OWNER, vm, point, target, number, memoryview(joined(body)))

    def complete(self, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Complete."""
        return self._receiver.complete(OWNER, vm, point, closing)


class Journey:
    """A VM with two disks, three segments each, on its way in ``usb``."""

    def __init__(
        self, root: Path, *, passphrase: str | None = None, recipient: str | None = None, replica: HostId = HERE
    ) -> None:
        self.root = root
        self.usb = root / "usb"
        self.repository: Repository = open_repository(root / "store")
        self.receiver = self._receiver()
        self.receiver.offer(OWNER, VM, offer())
        self.seed = prepare_export(
            str(self.usb),
            vm=VM,
            name="web",
            primary=OWNER,
            replica=replica,
            passphrase=passphrase,
            recipient=recipient,
        )
        self.spool = Spool(root / "spool", GiB)
        self.point: SpoolPoint = self.spool.create(opening("vda", "vdb"))
        fill(self.point)

    @property
    def replica(self) -> Replica:
        """Of the VM."""
        return self.repository.replica(VM)

    def announce(self, base: AwaitedBase) -> PointSummary:
        """Tell the replica that the export is complete."""
        return self.receiver.await_base(OWNER, base)

    def export(self) -> PointSummary:
        """Write the export, or go on writing it."""
        return ship_point(self.point, DirectoryWire(self.seed, self.announce), cancel=threading.Event())

    def send_delta(self) -> PointSummary:
        """Send a point that stands on the exported one."""
        self.point.discard()
        later = opening("vda", "vdb", point=DELTA)
        instant = later.instant + dt.timedelta(minutes=5)
        delta = self.spool.create(later.model_copy(update={"kind": "delta", "parent": POINT, "instant": instant}))
        for disk in delta.disks:
            add_segment(disk)
            disk.finish()
        delta.finish(0)
        return ship_point(delta, Near(self.receiver), cancel=threading.Event())

    def bring(self, secret: Secret | None = None, directory: Path | None = None) -> ImportReport:
        """Import it."""
        place = str(directory or self.usb)
        return import_export(self.repository, HERE, place, secret or Secret(), cancel=threading.Event())

    def refusal(self, secret: Secret | None = None, directory: Path | None = None) -> VmReplicaError:
        """Try to import it; nothing is published, and the error says what to do."""
        with pytest.raises(VmReplicaError) as caught:
            self.bring(secret, directory)
        assert caught.value.hint
        assert all(point.waits_for for point in self.replica.points())
        return caught.value

    def restart(self) -> None:
        """Open the replica's store anew, as after a kill."""
        self.repository = open_repository(self.root / "store")
        self.receiver = self._receiver()

    def files(self) -> list[Path]:
        """List the export's files, but no folders."""
        return sorted(path for path in self.usb.rglob("*") if path.is_file())

    def _receiver(self) -> Receiver:
        return Receiver(self.repository, hello=_hello, runs_here=_runs, on_published=lambda _vm, _summary: None)


def _hello() -> Hello:
    return Hello(name="replica", host_id=HERE, version="1", now=dt.datetime.now(dt.UTC), free_bytes=1)


def _runs(_peer: HostId, vm: VmId) -> RunsHere:
    return RunsHere(vm=vm, runs=True, epoch=0)

"""The whole repository: one directory, one replica in it per VM."""

import datetime as dt
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from vmreplica.fsio import fsync_dir, remove_tree, require_free
from vmreplica.model.adoption import Adoption
from vmreplica.model.errors import Conflict, NotFound, Refused, VmReplicaError
from vmreplica.model.ids import DiskTarget, HostId, VmId, VmName
from vmreplica.model.point import BaseDevice
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.states import Event, State
from vmreplica.repository import adopting
from vmreplica.repository.bases import adopted_bases
from vmreplica.repository.catalogue import Clock
from vmreplica.repository.devices import assign
from vmreplica.repository.layout import Layout, make_dir, store_errors, write_shape
from vmreplica.repository.record import AdoptionRecord, ReplicaRecord
from vmreplica.repository.replica import Replica

_log: Final = structlog.get_logger(__name__)
_VM: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Repository:
    """All replicas of a host. Thread-safe.

    Args:
        store: the directory; made when missing.
        min_free: bytes that receiving leaves free on its file system.
        base_devices: patterns of the devices that may hold bases.
        merge_limit: bytes per second that merging images may write, of each VM; 0: no limit.
        clock: gives aware time.
    """

    def __init__(
        self,
        store: Path,
        *,
        min_free: int = 0,
        base_devices: Sequence[str] = (),
        merge_limit: int = 0,
        clock: Clock = _now,
    ) -> None:
        self.store = store
        self.min_free = min_free
        #: Why a directory of the store is no replica that can be used.
        self.damaged: dict[str, VmReplicaError] = {}
        self._base_devices = tuple(base_devices)
        self._merge_limit = merge_limit
        self._clock = clock
        self._lock = threading.RLock()
        #: Called with the name of each step of an adoption; for tests that end the agent there.
        self.before_adopt_step: adopting.StepHook = lambda _step: None
        with store_errors(store):
            store.mkdir(parents=True, exist_ok=True)
            make_dir(store)
            self._replicas = self._load()

    def create(self, vm: VmId, owner: HostId, offer: ReplicaOffer) -> Replica:
        """Accept a relationship; one that exists takes over the offer's policy.

        Raises:
            Refused: ``replica-of-another-host``.
            NoSpace: the store has less than its reserve free; nothing is left behind.
            VmReplicaError: a device cannot be given, or nobody agreed to erase it; see ``devices.assign``.
        """
        with self._lock:
            known = self._replicas.get(vm)
            if known is None:
                self._replicas[vm] = known = self._create(vm, owner, offer)
            elif known.record.owner != owner:
                raise Refused(
                    "replica-of-another-host",
                    f"this host holds a replica of {vm} that another host sends",
                    hint="on the replica's host: `vmreplica hand-over VM --to PEER` if the VM was migrated, "
                    "or `vmreplica disable VM` if its primary is gone",
                )
            else:
                given = self._assign(vm, offer, known.record.base_devices)
                known.update(name=offer.name, interval=offer.interval, keep=offer.keep, base_devices=given)
            return known

    def adopt(self, adoption: Adoption) -> Replica:
        """Make the disks of a VM that ran here the base of its replica here; again is harmless.

        The replica takes no points before its ``finish_adoption``. From the moment that the adoption is written down,
        ``recover`` goes on with it.

        Returns:
            The replica, with the adopted point.

        Raises:
            Conflict: ``disk-not-adoptable``, ``commit-first``; ``replica-in-use``: a test failover runs here;
                ``state-forbids``: what is held here of the VM is not over.
            HypervisorError, TimedOut: an image cannot be opened. Nothing has changed so far.
            NotFound: ``adopted-base-missing``; NoSpace: it may be repeated.
        """
        layout = Layout(self.store / adoption.vm)
        if (done := self._adopted(adoption)) is not None:
            return done
        # Not under the lock: a disk that stands still would keep all other replicas waiting.
        judged = self._adoption(adoption) or adopting.judge(layout, adoption)
        with self._lock:
            if (done := self._adopted(adoption)) is not None:
                return done
            record = self._adoption(adoption)
            if record is None:
                record = judged
                self._begin(layout, self._replicas.get(adoption.vm), record)
            adopting.carry_out(layout, record, now=self._clock(), before=self.before_adopt_step)
            self._replicas[adoption.vm] = found = self._load_one(layout.root)
            return found

    def replica(self, vm: VmId) -> Replica:
        """Find a replica.

        Raises:
            NotFound: ``replica-unknown``.
        """
        with self._lock:
            if vm not in self._replicas:
                raise NotFound(
                    "replica-unknown", f"this host holds no replica of {vm}", hint="vmreplica status lists them"
                )
            return self._replicas[vm]

    def replicas(self) -> list[Replica]:
        """List all replicas, by VM id."""
        with self._lock:
            return [self._replicas[vm] for vm in sorted(self._replicas)]

    def remove(self, vm: VmId) -> None:
        """Delete a replica with all its points; one that is gone already is no error.

        Raises:
            Conflict: ``replica-in-use``: the VM runs here on its files; ``state-forbids``.
        """
        with self._lock:
            replica = self._replicas.get(vm)
            if replica is None:
                return
            if replica.record.tests:
                raise Conflict(
                    "replica-in-use",
                    f"a test failover of {replica.record.name} runs on the files of its replica",
                    hint=f"vmreplica failover {replica.record.name} --test --cancel",
                )
            if replica.record.failover is not None:
                raise Conflict(
                    "replica-in-use",
                    f"{replica.record.name} runs here on the files of its replica",
                    hint="shut it down and undefine it before its files are given up",
                )
            replica.require_unread()
            if replica.record.state is not State.REMOVING:
                replica.move(Event.REMOVE)
            del self._replicas[vm]
        replica.retire()
        for device in replica.record.base_devices.values():
            _log.warning("a base's device keeps its content: wipe it", vm=vm, device=device.path)
        for base in adopted_bases(replica.manifests()):
            if base.path.startswith("/"):
                _log.warning("an old disk of the VM stays where it is", vm=vm, path=base.path)
        with store_errors(self.store):
            remove_tree(replica.dir)
            fsync_dir(self.store)

    def recover(self) -> None:
        """Finish what a crash interrupted; called once, at start. What cannot be finished is in ``damaged``."""
        with self._lock, store_errors(self.store):
            for leftover in (*self.store.glob(".*.gone"), *self.store.glob(".*.new")):
                remove_tree(leftover)
            for vm, replica in list(self._replicas.items()):
                try:
                    if replica.record.state is State.REMOVING:
                        self.remove(vm)
                    elif replica.record.adoption is not None:
                        self.adopt(replica.record.adoption.adoption)
                    else:
                        replica.recover()
                except VmReplicaError as error:
                    self.damaged[vm] = error

    def _load(self) -> dict[VmId, Replica]:
        replicas: dict[VmId, Replica] = {}
        for directory in self.store.iterdir():
            if _VM.fullmatch(directory.name):
                try:
                    replicas[directory.name] = self._load_one(directory)
                except VmReplicaError as error:
                    self.damaged[directory.name] = error
        return replicas

    def _adopted(self, adoption: Adoption) -> Replica | None:
        """Give the replica that came of an adoption, and is one like any other now."""
        with self._lock:
            known = self._replicas.get(adoption.vm)
        return known if known is not None and adopting.is_done(known.record, adoption) else None

    def _adoption(self, adoption: Adoption) -> AdoptionRecord | None:
        """Give the adoption under way that is the same one, whatever it has been named: an epoch has one."""
        with self._lock:
            known = self._replicas.get(adoption.vm)
            record = known.record.adoption if known is not None else None
        if record is None or (record.adoption.owner, record.adoption.epoch) != (adoption.owner, adoption.epoch):
            return None
        return record

    def _begin(self, layout: Layout, known: Replica | None, record: AdoptionRecord) -> None:
        """Write an adoption down; what a former one of this VM made meanwhile gives way to it."""
        begun = adopting.begun(record)
        if known is not None:
            adopting.require_over(known.record, record.adoption)
            known.retire()
            write_shape(layout.record, begun)
            return
        if begun.vm in self.damaged:
            raise self.damaged[begun.vm]
        require_free(self.store, self.min_free, f"a replica of {begun.name}")
        self._replicas[begun.vm] = self._make(begun)

    def _load_one(self, directory: Path) -> Replica:
        return Replica(directory, min_free=self.min_free, clock=self._clock, merge_limit=self._merge_limit)

    def _create(self, vm: VmId, owner: HostId, offer: ReplicaOffer) -> Replica:
        if vm in self.damaged:
            raise self.damaged[vm]
        require_free(self.store, self.min_free, f"a replica of {offer.name}")
        record = ReplicaRecord(
            vm=vm,
            name=offer.name,
            owner=owner,
            interval=offer.interval,
            keep=offer.keep,
            state=State.WAITING,
            epoch=offer.epoch,
            base_devices=self._assign(vm, offer, {}),
        )
        return self._make(record)

    def _make(self, record: ReplicaRecord) -> Replica:
        building = Layout(self.store / f".{record.vm}.new")
        with store_errors(self.store):
            remove_tree(building.root)
            building.make()
            write_shape(building.record, record)
            building.root.rename(self.store / record.vm)
            fsync_dir(self.store)
        return self._load_one(self.store / record.vm)

    def _assign(self, vm: VmId, offer: ReplicaOffer, held: Mapping[DiskTarget, BaseDevice]) -> dict[str, BaseDevice]:
        return assign(
            offer.name,
            offer.base_devices,
            held=held,
            others=[taken for other, replica in self._replicas.items() if other != vm for taken in _taken(replica)],
            allowed=self._base_devices,
            erase=offer.erase,
        )


def _taken(replica: Replica) -> list[tuple[BaseDevice, VmName]]:
    """List the devices that bases of a replica stand on, or shall stand on, and whose they are."""
    # Named by libvirt, not by a person: not held to the rules for names of devices that are given away.
    old = [
        BaseDevice.model_construct(path=base.path, identity=base.identity)
        for base in adopted_bases(replica.manifests())
        if base.path.startswith("/dev/")
    ]
    return [(device, replica.record.name) for device in (*replica.record.base_devices.values(), *old)]

"""The whole repository: one directory, one replica in it per VM."""

import datetime as dt
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from vmreplica.fsio import fsync_dir, remove_tree, require_free
from vmreplica.model.errors import Conflict, NotFound, Refused, VmReplicaError
from vmreplica.model.ids import DiskTarget, HostId, VmId
from vmreplica.model.point import BaseDevice
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.states import Event, State
from vmreplica.repository.devices import assign
from vmreplica.repository.layout import Layout, make_dir, store_errors, write_shape
from vmreplica.repository.record import ReplicaRecord
from vmreplica.repository.replica import Clock, Replica

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
        clock: gives aware time.
    """

    def __init__(
        self, store: Path, *, min_free: int = 0, base_devices: Sequence[str] = (), clock: Clock = _now
    ) -> None:
        self.store = store
        self.min_free = min_free
        #: Why a directory of the store is no replica that can be used.
        self.damaged: dict[str, VmReplicaError] = {}
        self._base_devices = tuple(base_devices)
        self._clock = clock
        self._lock = threading.RLock()
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
            if replica.record.state is not State.REMOVING:
                replica.move(Event.REMOVE)
            del self._replicas[vm]
        replica.retire()
        for device in replica.record.base_devices.values():
            _log.warning("a base's device keeps its content: wipe it", vm=vm, device=device.path)
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
                    else:
                        replica.recover()
                except VmReplicaError as error:
                    self.damaged[vm] = error

    def _load(self) -> dict[VmId, Replica]:
        replicas: dict[VmId, Replica] = {}
        for directory in self.store.iterdir():
            if _VM.fullmatch(directory.name):
                try:
                    replicas[directory.name] = Replica(directory, min_free=self.min_free, clock=self._clock)
                except VmReplicaError as error:
                    self.damaged[directory.name] = error
        return replicas

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
        building = Layout(self.store / f".{vm}.new")
        with store_errors(self.store):
            remove_tree(building.root)
            building.make()
            write_shape(building.record, record)
            building.root.rename(self.store / vm)
            fsync_dir(self.store)
        return Replica(self.store / vm, min_free=self.min_free, clock=self._clock)

    def _assign(self, vm: VmId, offer: ReplicaOffer, held: Mapping[DiskTarget, BaseDevice]) -> dict[str, BaseDevice]:
        return assign(
            offer.name,
            offer.base_devices,
            held=held,
            others=[replica.record for other, replica in self._replicas.items() if other != vm],
            allowed=self._base_devices,
            erase=offer.erase,
        )

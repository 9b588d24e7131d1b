"""A real backup job, begun and ended on a VM: what no look at versions and rights can tell.

The trial is written down before the job begins. Killed anywhere, the agent's next start ends the job and deletes the
checkpoint; nothing of it stays on the VM.
"""

import datetime as dt
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from vmreplica.capture.connection import Connection
from vmreplica.fsio import publish_bytes
from vmreplica.hypervisor import BackupJob, Export, Hypervisor
from vmreplica.model.errors import Conflict, NotFound, VmReplicaError
from vmreplica.model.ids import CheckpointName, DiskTarget, HostId, VmId, checkpoint_name, new_point_id
from vmreplica.model.shape import Shape

_log: Final = structlog.get_logger(__name__)

_READ_LIMIT: Final = 20.0
_SAMPLE: Final = 4096
#: Seconds between two attempts to clear up while libvirt is away.
_RETRY: Final = 15.0


class TrialRecord(Shape):
    """What must be cleared up when a trial does not come to its end."""

    vm: VmId
    checkpoint: CheckpointName


class Trials:
    """Thread-safe; one trial per VM at a time.

    Args:
        directory: for records of trials under way; made when first needed.
        hypervisor: of this host.
    """

    def __init__(self, directory: Path, hypervisor: Hypervisor) -> None:
        self._directory = directory
        self._hypervisor = hypervisor
        self._lock = threading.Lock()
        self._running: set[VmId] = set()
        self._ending = threading.Event()

    def start(self) -> None:
        """Clear up what an earlier agent left, in the background, until it is done."""
        if self._records():
            threading.Thread(target=self._recover, name="trials", daemon=True).start()

    def stop(self) -> None:
        """Clear up no more; the next start goes on."""
        self._ending.set()

    def checkpoints(self) -> frozenset[str]:
        """Name the checkpoints of trials under way, or not cleared up yet."""
        return frozenset(record.checkpoint for record in self._records())

    def run(self, vm: VmId, owner: HostId, bases: Mapping[DiskTarget, str | None]) -> float:
        """Begin a job, read a little of each disk, end it, and leave nothing.

        Args:
            vm: a running VM whose turn the caller has.
            owner: the replica of its relationship, or this host: names the checkpoint.
            bases: as for ``Hypervisor.begin_backup``.

        Returns:
            Seconds from the beginning of the job to its end.

        Raises:
            Conflict: ``trial-running``, ``backup-job-running``, ``vm-not-running``, ``too-many-checkpoints``.
            VmReplicaError: what does not work.
        """
        with self._lock:
            if vm in self._running:
                raise Conflict("trial-running", "another doctor has this VM in hand", hint="try again in a moment")
            self._running.add(vm)
        try:
            return self._try(vm, owner, bases)
        finally:
            with self._lock:
                self._running.discard(vm)

    def _try(self, vm: VmId, owner: HostId, bases: Mapping[DiskTarget, str | None]) -> float:
        left = self._read(self._path(vm))
        if left is not None:
            self._clear(left)
        point = new_point_id(dt.datetime.now(dt.UTC), secrets.token_hex(4))
        record = TrialRecord(vm=vm, checkpoint=checkpoint_name(owner, point))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        publish_bytes(self._path(vm), record.model_dump_json().encode())
        started = time.monotonic()
        try:
            _sample(self._hypervisor.begin_backup(vm, checkpoint=record.checkpoint, bases=bases))
        finally:
            self._clear(record)
            # The bases were made known to libvirt for the job.
            self._hypervisor.hide_checkpoints(vm)
        return time.monotonic() - started

    def _clear(self, record: TrialRecord) -> None:
        try:
            self._hypervisor.end_job(record.vm, record.checkpoint)
            self._hypervisor.delete_checkpoint(record.vm, record.checkpoint)
        except NotFound:
            _log.info("the VM of a trial is gone", vm=record.vm)
        self._path(record.vm).unlink(missing_ok=True)

    def _recover(self) -> None:
        while not self._ending.is_set():
            for record in self._records():
                self._clear_left(record)
            if not self._records():
                return
            self._ending.wait(_RETRY)

    def _clear_left(self, record: TrialRecord) -> None:
        with self._lock:
            if record.vm in self._running:
                return
        try:
            self._clear(record)
            _log.info("cleared up after a trial", vm=record.vm, checkpoint=record.checkpoint)
        except VmReplicaError as error:
            _log.warning("cannot clear up after a trial yet", vm=record.vm, why=error.message)

    def _records(self) -> list[TrialRecord]:
        found = (self._read(path) for path in sorted(self._directory.glob("*.json")))
        return [record for record in found if record is not None]

    def _read(self, path: Path) -> TrialRecord | None:
        try:
            return TrialRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            _log.warning("a trial's record is damaged", file=str(path))
            path.unlink(missing_ok=True)
            return None

    def _path(self, vm: VmId) -> Path:
        return self._directory / f"{vm}.json"


def _sample(job: BackupJob) -> None:
    """Read a little of each disk, as a cycle would; every connection is closed before the job is ended."""
    for target, export in job.exports.items():
        _read_some(f"{target} of {job.vm}", export)


def _read_some(what: str, export: Export) -> None:
    deadline = time.monotonic() + _READ_LIMIT
    connection = Connection(export, what, lambda: time.monotonic() > deadline)
    try:
        connection.read_into(memoryview(bytearray(min(_SAMPLE, export.size))), 0)
    finally:
        connection.close()

"""Backup jobs of VMs whose cycles rest: kept, so that no segment is sent again, and watched, for the guest comes first.

A cycle that was stopped leaves its job running and its point in the spool. While no cycle of the VM looks after them,
this does: the job is given up when its scratch space runs low, or after a time. A job is of use only as long as its
point is not read to its end: one that was left in spite of that is ended, whether the replica is there or not.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from vmreplica.agent.facts import Stages
from vmreplica.agent.transfer import WATCH, scratch_trouble
from vmreplica.fsio import free_bytes
from vmreplica.hypervisor import BackupJob
from vmreplica.model.errors import NotFound, VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.spool import SpoolPoint

_log: Final = structlog.get_logger(__name__)

#: Seconds between tries to end a job that is of no use any more.
_AGAIN: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Held:
    job: BackupJob
    point: SpoolPoint
    until: float


class Keeper:
    """Thread-safe.

    Args:
        stages: libvirt, spool and limits of this host.
        longest: seconds for which a job is kept.
        clock: monotonic seconds.
    """

    def __init__(self, stages: Stages, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stages = stages
        self._longest = longest
        self._clock = clock
        self._news = threading.Condition()
        self._held: dict[VmId, _Held] = {}
        #: VMs that shall have no job of ours, and the one whose job is being ended just now.
        self._over: set[VmId] = set()
        self._ending: VmId | None = None
        self._stopping = False
        # Ending may hang with libvirt; the watch over the other jobs must not.
        self._threads = (
            threading.Thread(target=self._loop, name="keeper", daemon=True),
            threading.Thread(target=self._end_loop, name="job-ender", daemon=True),
        )

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the watch; a job runs on for the next start, if it can do no harm without being watched."""
        with self._news:
            self._stopping = True
            self._news.notify_all()
        for thread in self._threads:
            thread.join()
        for vm, held in self._held.items():
            self._leave(vm, held)

    def hold(self, vm: VmId) -> None:
        """Look after what the cycle of a VM left, if it left a job; harmless when it did not."""
        point = self._stages.spool.point(vm)
        if point is None or point.closing is not None or point.opening.checkpoint is None:
            with self._news:
                self._over.add(vm)
                self._news.notify_all()
            return
        try:
            job = self._stages.hypervisor.attach_backup(vm, point.opening.checkpoint)
        except VmReplicaError as error:
            _log.warning("cannot look after a backup job", vm=vm, why=error.message)
            return
        if job is None:
            return
        with self._news:
            self._held[vm] = _Held(job, point, self._clock() + self._longest)
            self._news.notify_all()

    def release(self, vm: VmId) -> None:
        """Leave the job of a VM to a cycle that begins; when this returns it is not being given up or ended."""
        with self._news:
            self._held.pop(vm, None)
            self._over.discard(vm)
            self._news.wait_for(lambda: self._ending != vm)

    def _leave(self, vm: VmId, held: _Held) -> None:
        limits = self._stages.limits
        free = free_bytes(limits.scratch_dir)
        if harmless(held.job.scratch_bytes(), free, limits.scratch_cap, limits.min_free):
            return
        _log.warning("too little scratch space to leave a backup job alone: it is given up", vm=vm)
        try:
            give_up(self._stages, held.point)
        except VmReplicaError as error:
            _log.warning("cannot give up a backup job now", vm=vm, why=error.message)

    def _loop(self) -> None:
        with self._news:
            while not self._stopping:
                for vm, held in tuple(self._held.items()):
                    self._look(vm, held)
                self._news.wait(WATCH if self._held else None)

    def _end_loop(self) -> None:
        """End jobs of no use; what cannot be ended is tried again, and once more before the agent stops."""
        while True:
            with self._news:
                left, last = tuple(self._over), self._stopping
            failed = [vm for vm in left if not self._end(vm)]
            if last:
                return
            self._wait_for_more(failed)

    def _wait_for_more(self, failed: list[VmId]) -> None:
        with self._news:
            timeout = _AGAIN if failed else None
            self._news.wait_for(lambda: self._stopping or not self._over.issubset(failed), timeout)

    def _end(self, vm: VmId) -> bool:
        with self._news:
            if vm not in self._over:
                return True
            self._ending = vm
        ended = False
        try:
            ended = self._ended(vm)
        finally:
            with self._news:
                self._ending = None
                if ended:
                    self._over.discard(vm)
                self._news.notify_all()
        return ended

    def _ended(self, vm: VmId) -> bool:
        try:
            self._stages.hypervisor.end_backup(vm)
        except NotFound:
            return True
        except VmReplicaError as error:
            _log.warning("cannot end a backup job that nobody needs: tried again", vm=vm, why=error.message)
            return False
        return True

    def _look(self, vm: VmId, held: _Held) -> None:
        try:
            trouble = scratch_trouble(held.job, self._stages.limits)
            if trouble is None and self._clock() < held.until:
                return
            why = trouble.message if trouble else "its replication rested for too long"
            _log.warning("a kept backup job is given up", vm=vm, point=held.point.opening.point, why=why)
            give_up(self._stages, held.point)
        except VmReplicaError as error:
            _log.warning("cannot give up a backup job now", vm=vm, why=error.message)
            return
        del self._held[vm]


def harmless(used: int, free: int, cap: int, min_free: int) -> bool:
    """Tell whether a job's scratch may grow to its cap without filling the file system; all in bytes."""
    return free - max(0, cap - used) >= min_free


def give_up(stages: Stages, point: SpoolPoint) -> None:
    """End a point's backup job, and forget its checkpoint and what was read.

    Raises:
        VmReplicaError: libvirt refuses or is away; the point stays.
    """
    vm = point.opening.vm
    stages.hypervisor.end_backup(vm)
    # Of a VM that just went off the next cycle tidies up: it may be on its way back, and needs its images.
    if point.opening.checkpoint is not None and stages.hypervisor.running(vm):
        stages.hypervisor.delete_checkpoint(vm, point.opening.checkpoint)
    point.discard()


def abandon(stages: Stages, point: SpoolPoint) -> None:
    """Forget a point that was only just begun, and end its job first: without the point nobody would know of it."""
    vm = point.opening.vm
    try:
        stages.hypervisor.end_backup(vm)
    except VmReplicaError as error:
        _log.warning("cannot end a backup job that just began: tried again after its cycle", vm=vm, why=error.message)
    point.discard()

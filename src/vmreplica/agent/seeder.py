"""The replica's reader of existing copies: one after the other, taken up again after a crash, given up on request."""

import datetime as dt
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from vmreplica.agent.schedule import BACKOFF
from vmreplica.agent.seed_source import opened, usable_size
from vmreplica.agent.seeding import SeedReading, SeedTools, as_problem
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import VmId, new_point_id
from vmreplica.model.point import Seeding
from vmreplica.model.seed import SeedDisk
from vmreplica.repository import Replica, Repository, SeedRecord

_log: Final = structlog.get_logger(__name__)

#: Seconds that giving up may take: a few clusters are finished, a store is synced.
_STOP_LIMIT: Final = 60.0
#: Answers of our own store after which what was read is thrown away and read again, once.
_AFRESH: Final = frozenset({"opening-differs", "segment-differs", "replica-lost-segments", "closing-differs"})
_WAITING: Final = "waiting for its turn to read the existing copy"


@dataclass(slots=True)
class _Job:
    seed: SeedRecord
    stopped: threading.Event = field(default_factory=threading.Event)
    future: "Future[None] | None" = None

    def stop(self) -> None:
        """Give up, and wait until nothing is read any more."""
        self.stopped.set()
        if self.future is not None and not self.future.cancel():
            self.future.exception(timeout=_STOP_LIMIT)


class Seeder:
    """Thread-safe; implements ``receive.Seeds``.

    Args:
        repository: the replicas.
        tools: what reading needs.
    """

    def __init__(self, repository: Repository, tools: SeedTools) -> None:
        self._repository = repository
        self._tools = tools
        self._lock = threading.RLock()
        self._jobs: dict[VmId, _Job] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seed")

    def start(self) -> None:
        """Go on with what a crash or a restart interrupted."""
        for replica in self._repository.replicas():
            seed = replica.record.seed
            if seed is not None and seed.stage == "reading":
                self._submit(replica, seed)

    def stop(self) -> None:
        """End what is being read; it goes on at the next start."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def check(self, disks: tuple[SeedDisk, ...]) -> None:
        """Look whether these copies may be read and can be; changes nothing.

        Raises:
            VmReplicaError: see ``seed_source``.
        """
        for disk in disks:
            with opened(disk, self._tools.rules) as image:
                usable_size(disk, image)

    def begin(self, replica: Replica, disks: tuple[SeedDisk, ...]) -> None:
        """Write the wish down and read the copies in the background, instead of others that were begun."""
        with self._lock:
            self.cancel(replica.record.vm)
            point = new_point_id(dt.datetime.now(dt.UTC), secrets.token_hex(4))
            seed = SeedRecord(point=point, disks=disks)
            replica.update(seed=seed)
            self._submit(replica, seed)

    def cancel(self, vm: VmId) -> None:
        """Give up what was begun, if anything; nothing is read when this returns."""
        with self._lock:
            job = self._jobs.pop(vm, None)
            if job is not None:
                job.stop()
            replica = next((known for known in self._repository.replicas() if known.record.vm == vm), None)
            seed = replica.record.seed if replica is not None else None
            if replica is not None and seed is not None and seed.stage != "done":
                replica.update(seed=None)
                replica.abandon(seed.point)
            self._discard(vm)

    def _submit(self, replica: Replica, seed: SeedRecord) -> None:
        job = _Job(seed)
        replica.seeding = Seeding(phase=_WAITING)
        with self._lock:
            self._jobs[replica.record.vm] = job
            job.future = self._pool.submit(self._work, replica, job)

    def _work(self, replica: Replica, job: _Job) -> None:
        try:
            self._until_done(replica, job)
        except Exception as error:  # noqa: BLE001 - whatever it was, the primary has to learn of it
            if job.stopped.is_set():
                return
            problem = as_problem(error).problem()
            _log.warning("an existing copy cannot be used", vm=replica.record.vm, why=problem.message)
            replica.update(seed=job.seed.model_copy(update={"stage": "failed", "problem": problem}))

    def _until_done(self, replica: Replica, job: _Job) -> None:
        failures, afresh = 0, True
        while not job.stopped.is_set():
            try:
                if not replica.points():
                    SeedReading(replica, job.seed, self._tools, job.stopped).run()
                self._discard(replica.record.vm)
                replica.update(seed=job.seed.model_copy(update={"stage": "done"}))
            except VmReplicaError as error:
                if error.code in _AFRESH and afresh:
                    afresh = False
                    self._forget(replica, job)
                    continue
                if error.kind != "transient":
                    raise
                failures += 1
                wait = BACKOFF[min(failures, len(BACKOFF)) - 1]
                _log.warning("reading an existing copy waits", vm=replica.record.vm, why=error.message, retry_in=wait)
                replica.seeding = replica.seeding.model_copy(update={"phase": f"waiting: {error.message}"})
                job.stopped.wait(wait)
            else:
                return

    def _forget(self, replica: Replica, job: _Job) -> None:
        replica.abandon(job.seed.point)
        self._discard(replica.record.vm)

    def _discard(self, vm: VmId) -> None:
        left = self._tools.spool.point(vm)
        if left is not None:
            left.discard()

"""Taking an export in: what arrived in a directory goes the way that a peer's segments go, through the same checks."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from vmreplica.model.errors import Conflict, NotFound, Refused
from vmreplica.model.export import AwaitedBase, Directory, ExportHeader, ImportReport
from vmreplica.model.ids import DiskTarget, HostId
from vmreplica.parcel import Arrival, Secret
from vmreplica.repository import Replica, Repository

#: Told after each segment: bytes of files behind us, of how many.
Progress = Callable[[int, int], None]

_WORKERS: Final = 2
_Task = tuple[DiskTarget, int]


def import_export(
    repository: Repository,
    here: HostId,
    directory: Directory,
    secret: Secret,
    *,
    cancel: threading.Event,
    progress: Progress = lambda _done, _total: None,
) -> ImportReport:
    """Take in the first copy of a VM that this host waits for; what an earlier call took in is not read again.

    Args:
        repository: of this host.
        here: this host.
        directory: where the export arrived; it is only read.
        secret: opens an encrypted one.
        cancel: ends it within a segment; what was taken in stays.
        progress: called from the reading threads.

    Raises:
        NotFound: ``export-unknown``, ``export-incomplete``, ``replica-unknown``.
        Refused: ``export-for-another-host``.
        Conflict: ``export-not-awaited``, ``import-stopped``.
        Corrupt: ``export-damaged``, or a segment breaks a rule of the format.
        BadRequest: the passphrase or key is missing or wrong.
        Unreachable: the medium is gone.
        NoSpace: the store is full.
    """
    arrival = Arrival(directory)
    header = arrival.header
    replica = _replica(repository, here, header, directory)
    report = _report(replica, header)
    if report is not None:
        return report
    base = _awaited(replica, header, directory)
    total = arrival.check(base)
    arrival.unlock(secret)
    segments = sum(disk.segments for disk in base.closing.disks)
    _Import(replica, arrival, base, cancel, lambda done: progress(total * done // segments, total)).run()
    replica.awaiting.publish()
    return ImportReport(
        vm=base.opening.vm, name=replica.record.name, point=base.opening.point, was_here=False, file_bytes=total
    )


class _Import:
    """One call's threads and what they share."""

    def __init__(
        self,
        replica: Replica,
        arrival: Arrival,
        base: AwaitedBase,
        cancel: threading.Event,
        progress: Callable[[int], None],
    ) -> None:
        self._replica = replica
        self._arrival = arrival
        self._base = base
        self._cancel = cancel
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._error: BaseException | None = None

    def run(self) -> None:
        """Take in what is missing; raises the first error, after all threads stopped."""
        self._tasks = self._missing(self._replica.awaiting.begin())
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="import") as pool:
            for _ in range(_WORKERS):
                pool.submit(self._work)
        if self._error is not None:
            raise self._error
        if self._cancel.is_set():
            raise Conflict(
                "import-stopped",
                f"the import of {self._base.opening.name} was stopped",
                hint="run it again: it goes on where it stopped",
                kind="transient",
            )

    def _missing(self, held: dict[DiskTarget, set[int]]) -> Iterator[_Task]:
        for disk in self._base.closing.disks:
            for number in range(disk.segments):
                if number in held[disk.target]:
                    self._count()
                else:
                    yield disk.target, number

    def _work(self) -> None:
        try:
            while not self._cancel.is_set() and self._error is None and (task := self._next()) is not None:
                body = self._arrival.segment(self._base, *task)
                self._replica.awaiting.put(*task, body)
                with self._lock:
                    self._count()
        except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread
            with self._lock:
                self._error = self._error or error

    def _next(self) -> _Task | None:
        with self._lock:
            return next(self._tasks, None)

    def _count(self) -> None:
        """Count a segment that is behind us; the lock is held."""
        self._done += 1
        self._progress(self._done)


def _replica(repository: Repository, here: HostId, header: ExportHeader, directory: Directory) -> Replica:
    if header.replica != here:
        raise Refused(
            "export-for-another-host",
            f"the export of {header.name} in {directory} is for host {header.replica}, this is {here}",
            hint="`vmreplica status --json` shows a host's id; run vmreplica import there",
        )
    try:
        replica = repository.replica(header.vm)
    except NotFound:
        replica = None
    if replica is None or replica.record.owner != header.primary:
        raise NotFound(
            "replica-unknown",
            f"this host holds no replica of {header.name} ({header.vm}) that the export in {directory} could begin",
            hint=f"on the primary: vmreplica enable {header.name} --to PEER --seed export:DIR; then import its export",
        )
    return replica


def _report(replica: Replica, header: ExportHeader) -> ImportReport | None:
    """Tell whether the export was imported before."""
    if replica.record.imported != header.export:
        return None
    points = replica.points()
    if not points:
        return None
    return ImportReport(vm=header.vm, name=replica.record.name, point=points[-1].point, was_here=True)


def _awaited(replica: Replica, header: ExportHeader, directory: Directory) -> AwaitedBase:
    base = replica.awaiting.base
    if base is not None and base.export == header.export:
        return base
    name = replica.record.name
    if base is not None:
        why = "another export is awaited"
    elif replica.points():
        why = "its replica here has points already and waits for none"
    else:
        why = "its primary has not finished it yet, or could not tell so"
    raise Conflict(
        "export-not-awaited",
        f"the export of {name} in {directory} cannot be imported: {why}",
        hint=f"`vmreplica status {name}` on the primary tells how far the export is",
    )

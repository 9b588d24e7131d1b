"""Imports of exports on this host, one after the other: media are slow when they are read in two places."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from vmreplica.agent.meter import Meter
from vmreplica.agent.tasks import Task
from vmreplica.model.errors import Internal, VmReplicaError
from vmreplica.model.export import Directory
from vmreplica.model.ids import HostId, VmId
from vmreplica.parcel import Secret
from vmreplica.receive import import_export
from vmreplica.repository import Repository

_log: Final = structlog.get_logger(__name__)


class Imports:
    """Thread-safe. An import that the agent's end stops goes on where it was when it is asked for again.

    Args:
        repository: of this host.
        here: this host.
        came: called with a VM whose first copy was taken in.
    """

    def __init__(self, repository: Repository, here: HostId, came: Callable[[VmId], None]) -> None:
        self._repository = repository
        self._here = here
        self._came = came
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="import")
        self._stopping = threading.Event()

    def begin(self, directory: Directory, secret: Secret, task: Task) -> None:
        """Take an export in, after those that were asked for before; the task ends with it."""
        task.meter = meter = Meter()
        meter.phase("waiting for another import")
        self._pool.submit(self._run, directory, secret, task, meter)

    def stop(self) -> None:
        """End what runs within a segment."""
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, directory: Directory, secret: Secret, task: Task, meter: Meter) -> None:
        error: VmReplicaError | None = None
        try:
            self._import(directory, secret, task, meter)
        except VmReplicaError as caught:
            error = caught
            _log.warning("import failed", directory=directory, code=error.code, why=error.message)
        except Exception as caught:  # noqa: BLE001 - a defect must not leave somebody waiting for ever
            _log.exception("import failed unexpectedly", directory=directory)
            error = Internal("internal", f"the import of {directory} failed: {caught}", hint="see the agent's log")
        task.finish(None, error)

    def _import(self, directory: Directory, secret: Secret, task: Task, meter: Meter) -> None:
        meter.phase("checking the export")

        def progress(done: int, total: int) -> None:
            meter.phase("importing")
            meter.read(done, total)

        report = import_export(
            self._repository, self._here, directory, secret, cancel=self._stopping, progress=progress
        )
        _log.info("imported", directory=directory, **report.model_dump(mode="json"))
        task.imported = report
        self._came(report.vm)

"""Exports of points on this host: every disk into a file of its own, one export after the other.

A file is written beside its final name and renamed when it is whole. What a killed agent leaves of it is named in
``<state>/exports``, and removed at the next start.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from vmreplica.agent.meter import Meter
from vmreplica.agent.tasks import Task
from vmreplica.fsio import fsync_dir, no_space, publish_bytes, require_free
from vmreplica.model.errors import BadRequest, Conflict, HypervisorError, Internal, NotFound, VmReplicaError
from vmreplica.model.ids import PointId
from vmreplica.model.point import DiskManifest
from vmreplica.model.taking import ExportedDisk, ExportFormat, PointExportReport, PointExportWish
from vmreplica.model.units import MiB
from vmreplica.qcow2.convert import ConvertStopped, compare_images, convert_image
from vmreplica.qcow2.tools import data_above
from vmreplica.repository import Replica

_log: Final = structlog.get_logger(__name__)

#: Seconds for finding out how much of a disk is data.
_MAP_LIMIT: Final = 3600.0
#: Tables and headers of any format: a part of the data, and a little.
_OVERHEAD: Final = 64
_SLACK: Final = 16 * MiB
_ALL: Final = 1 << 30
_ENDING: Final = {"qcow2": "qcow2", "raw": "img", "vhdx": "vhdx", "vmdk": "vmdk"}


def plan_export(replica: Replica, point: PointId, wish: PointExportWish) -> tuple[ExportedDisk, ...]:
    """Tell which files an export writes.

    Raises:
        NotFound: ``disk-unknown``, ``export-directory-missing``.
        BadRequest: ``export-needs-directory``: there are several disks.
        Conflict: ``export-file-exists``, ``base-awaited``.
        HypervisorError, TimedOut: an image of the point cannot be read.
    """
    disks = _wanted(replica, point, wish)
    to = Path(wish.to)
    if len(disks) > 1 and not to.is_dir():
        raise BadRequest(
            "export-needs-directory",
            f"point {point} has {len(disks)} disks, and {to} is no directory",
            hint=f"mkdir {to}, or choose one of them: " + " ".join(f"--disk {disk.target}" for disk in disks),
        )
    planned = []
    for disk in disks:
        path = _path(to, replica.record.name, disk, wish.format)
        _require_writable(path, force=wish.force)
        data = data_above(replica.image(point, disk.target), _ALL, seconds=_MAP_LIMIT)
        planned.append(ExportedDisk(target=disk.target, path=str(path), size=disk.size, file_bytes=data))
    for directory in {Path(disk.path).parent for disk in planned}:
        here = sum(disk.file_bytes for disk in planned if Path(disk.path).parent == directory)
        require_free(directory, here + here // _OVERHEAD + _SLACK, f"the export of point {point}")
    return tuple(planned)


class PointExports:
    """Thread-safe.

    Args:
        records: directory for notes on files that are being written.
    """

    def __init__(self, records: Path) -> None:
        self._records = records
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="point-export")
        self._stopping = threading.Event()
        self._running: set[threading.Event] = set()

    def recover(self) -> None:
        """Remove what a killed agent left half written."""
        for record in self._records.glob("*.part") if self._records.is_dir() else ():
            with contextlib.suppress(OSError):
                Path(record.read_text()).unlink(missing_ok=True)
            record.unlink(missing_ok=True)

    def stop(self) -> None:
        """End what runs; nothing of it is left."""
        self._stopping.set()
        for stop in tuple(self._running):
            stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, work: Callable[["Writing"], PointExportReport], task: Task) -> None:
        """Export, after those that were asked for before; the task ends with it, and can be cancelled."""
        task.meter, task.stop = Meter(), threading.Event()
        task.meter.phase("waiting for another export")
        self._running.add(task.stop)
        self._pool.submit(self._run, work, task, Writing(self._records, task.meter, task.stop))

    def _run(self, work: Callable[["Writing"], PointExportReport], task: Task, writing: "Writing") -> None:
        error: VmReplicaError | None = None
        try:
            if self._stopping.is_set():
                writing.stop.set()
            task.exported = work(writing)
        except ConvertStopped:
            error = Conflict("export-cancelled", "the export was cancelled, nothing of it is left", kind="transient")
        except VmReplicaError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - a defect must not leave somebody waiting for ever
            _log.exception("export of a point failed unexpectedly")
            error = Internal("internal", f"the export failed: {caught}", hint="see the agent's log")
        self._running.discard(writing.stop)
        task.finish(None, error)


class Writing:
    """One export's files.

    Args:
        records: directory for notes on files that are being written.
        meter: shows how far it is.
        stop: set to stop it.
    """

    def __init__(self, records: Path, meter: Meter, stop: threading.Event) -> None:
        self._records = records
        self._meter = meter
        self.stop = stop

    def write(
        self, replica: Replica, point: PointId, disks: Sequence[ExportedDisk], wish: PointExportWish
    ) -> tuple[ExportedDisk, ...]:
        """Write the files of a plan; all or none of them appear, as far as renaming succeeds.

        Raises:
            ConvertStopped: it was cancelled; nothing is left.
            Corrupt: ``export-differs``: nothing is left.
            HypervisorError, NoSpace, Internal: it could not be written, nothing is left.
        """
        parts: list[tuple[ExportedDisk, Path]] = []
        try:
            for disk in disks:
                part = Path(disk.path).with_name(f".{Path(disk.path).name}.{secrets.token_hex(4)}.part")
                parts.append((disk, part))
                self._write_one(replica.image(point, disk.target), disk, part, wish)
            return tuple(_put_in_place(disk, part, force=wish.force) for disk, part in parts)
        finally:
            for _disk, part in parts:
                part.unlink(missing_ok=True)
                self._note(part).unlink(missing_ok=True)

    def _write_one(self, image: Path, disk: ExportedDisk, part: Path, wish: PointExportWish) -> None:
        self._records.mkdir(mode=0o700, exist_ok=True)
        publish_bytes(self._note(part), str(part).encode())
        self._meter.phase(f"writing {disk.target}")
        with _file_errors(part):
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            convert_image(image, part, wish.format, progress=self._progress(disk), stop=self.stop)
        except HypervisorError as error:
            # qemu-img says in its own words that a file system is full: ask that ourselves.
            require_free(part.parent, MiB, f"the rest of {disk.path}")
            raise error from None
        with _file_errors(part), part.open("rb") as written:
            os.fsync(written.fileno())
        if wish.check:
            self._meter.phase(f"comparing {disk.target}")
            compare_images(image, part, wish.format, progress=self._progress(disk), stop=self.stop)

    def _progress(self, disk: ExportedDisk) -> Callable[[float], None]:
        return lambda share: self._meter.read(int(share * disk.size), disk.size)

    def _note(self, part: Path) -> Path:
        return self._records / f"{part.name.rsplit('.', 2)[-2]}.part"


def _wanted(replica: Replica, point: PointId, wish: PointExportWish) -> list[DiskManifest]:
    disks = [disk for disk in replica.point(point).disks if wish.disk in {None, disk.target}]
    if not disks:
        raise NotFound(
            "disk-unknown",
            f"point {point} of {replica.record.name} has no disk {wish.disk}",
            hint="its disks: " + " ".join(disk.target for disk in replica.point(point).disks),
        )
    return disks


def _path(to: Path, name: str, disk: DiskManifest, form: ExportFormat) -> Path:
    return to / f"{name}-{disk.target}.{_ENDING[form]}" if to.is_dir() else to


def _require_writable(path: Path, *, force: bool) -> None:
    if not path.parent.is_dir():
        hint = f"mkdir {path.parent}"
        raise NotFound("export-directory-missing", f"there is no directory {path.parent} on this host", hint=hint)
    if not os.path.lexists(path):
        return
    if not path.is_file() or path.is_symlink():
        hint = "choose another name"
        raise Conflict("export-file-exists", f"{path} is there already, and it is no ordinary file", hint=hint)
    if not force:
        raise Conflict("export-file-exists", f"{path} is there already", hint="--force replaces it")


def _put_in_place(disk: ExportedDisk, part: Path, *, force: bool) -> ExportedDisk:
    path = Path(disk.path)
    with _file_errors(path):
        if force:
            part.replace(path)
        else:
            _rename_anew(part, path)
        fsync_dir(path.parent)
        return disk.model_copy(update={"file_bytes": path.stat().st_blocks * 512})


def _rename_anew(part: Path, path: Path) -> None:
    """Rename a file, but never over another one that appeared meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise Conflict("export-file-exists", f"{path} appeared meanwhile", hint="--force replaces it") from None
    except OSError:  # a file system without hard links
        _require_writable(path, force=False)
        part.rename(path)


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        with no_space(path.parent):
            yield
    except OSError as error:
        hint = "is its file system writable? choose another place"
        what = f"{path} cannot be written: {error.strerror}"
        raise Internal("export-failed", what, hint=hint, kind="operator") from error

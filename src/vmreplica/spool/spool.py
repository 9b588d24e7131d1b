"""The spool of a host: one directory, one cap, at most one pending point per VM."""

import contextlib
import re
import threading
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from vmreplica.fsio import no_space, publish_bytes, remove_tree
from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.ids import VmId
from vmreplica.model.point import PointOpening
from vmreplica.spool.point import OPENING, SpoolPoint
from vmreplica.spool.room import Room

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_VM: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: A point, or one whose removal was interrupted.
_POINT: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}|\..*\.gone")

_log = structlog.get_logger(__name__)


class Spool:
    """Thread-safe. Opening it recovers what a killed process left and discards what an earlier boot left.

    Args:
        directory: made when missing; nobody else writes in it.
        cap_bytes: bound for the waiting segments of all VMs together. A point with nothing waiting may always write
            one segment, so every VM gets on however small the cap.
        boot_id: of the running kernel; read from it when not given.
    """

    def __init__(self, directory: Path, cap_bytes: int, *, boot_id: str | None = None) -> None:
        self._directory = directory
        self._room = Room(cap_bytes)
        self._lock = threading.Lock()
        self._points: dict[VmId, SpoolPoint] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._enter_boot(boot_id or _BOOT_ID.read_text().strip())
        self._recover()

    def create(self, opening: PointOpening) -> SpoolPoint:
        """Begin the pending point of a VM.

        Raises:
            Conflict: ``point-pending``; the VM has one already.
            NoSpace: the file system is full; nothing is left behind.
        """
        with self._lock:
            if opening.vm in self._points:
                pending = self._points[opening.vm].opening.point
                raise Conflict("point-pending", f"{opening.name} still has the point {pending} in the spool")
            directory = self._directory / opening.vm / opening.point
            try:
                with no_space(self._directory):
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    publish_bytes(directory / OPENING, opening.model_dump_json().encode(), durable=False)
                    point = SpoolPoint(directory, opening, self._room, self._gone)
            except BaseException:
                remove_tree(directory)
                raise
            self._points[opening.vm] = point
            return point

    def point(self, vm: VmId) -> SpoolPoint | None:
        """Give the pending point of a VM."""
        with self._lock:
            return self._points.get(vm)

    def used_bytes(self) -> int:
        """Tell the bytes of all waiting segments."""
        return self._room.used

    def _gone(self, point: SpoolPoint) -> None:
        with self._lock:
            self._points.pop(point.opening.vm, None)

    def _enter_boot(self, boot_id: str) -> None:
        """Discard everything when the machine was booted since: nothing here was ever synced."""
        marker = self._directory / "boot_id"
        if marker.exists() and marker.read_text().strip() == boot_id:
            return
        for vm_directory in self._vm_directories():
            _log.info("spool-discarded", vm=vm_directory.name, reason="the machine was booted since")
            remove_tree(vm_directory)
        publish_bytes(marker, boot_id.encode())

    def _recover(self) -> None:
        for vm_directory in self._vm_directories():
            candidates = sorted(path for path in vm_directory.iterdir() if _POINT.fullmatch(path.name))
            for directory in reversed(candidates):
                if vm_directory.name in self._points or not self._reopen(directory):
                    remove_tree(directory)
            with contextlib.suppress(OSError):
                vm_directory.rmdir()

    def _reopen(self, directory: Path) -> bool:
        """Take up a point again; False when it cannot be gone on with."""
        try:
            opening = _read_opening(directory)
            self._points[opening.vm] = SpoolPoint(directory, opening, self._room, self._gone)
        except (FileNotFoundError, ValidationError, Corrupt) as error:
            _log.warning("spool-point-discarded", directory=str(directory), reason=str(error))
            return False
        return True

    def _vm_directories(self) -> list[Path]:
        return sorted(path for path in self._directory.iterdir() if _VM.fullmatch(path.name))


def _read_opening(directory: Path) -> PointOpening:
    opening = PointOpening.model_validate_json((directory / OPENING).read_bytes())
    if (opening.vm, opening.point) != (directory.parent.name, directory.name):
        raise Corrupt("spool-damaged", f"{directory} holds another point")
    return opening

"""What came of boot tests, kept with the points they were of: ``boot-test.json`` and, where there is one, a picture."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from vmreplica.fsio import publish_bytes
from vmreplica.model.boot import BootResult
from vmreplica.model.errors import Corrupt, NotFound
from vmreplica.model.ids import PointId
from vmreplica.model.point import PointSummary
from vmreplica.repository.layout import FILE_MODE, Layout, read_shape, store_errors, write_shape

_log: Final = structlog.get_logger(__name__)
_NOTE: Final = "boot-test.json"
_PICTURE: Final = "boot-test.png"


class BootNotes:
    """Of one replica. Thread-safe.

    Args:
        layout: of the replica.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._known: dict[PointId, BootResult | None] = {}

    def keep(self, result: BootResult, picture: bytes | None) -> None:
        """Keep a result with its point, which is held; the picture also beside the points, as that of the last test.

        Raises:
            NoSpace: the store is full; what was kept before stays.
        """
        directory = self._layout.point(result.point)
        with store_errors(directory):
            if picture is None:
                (directory / _PICTURE).unlink(missing_ok=True)
                self._last.unlink(missing_ok=True)
            else:
                publish_bytes(directory / _PICTURE, picture, mode=FILE_MODE)
                publish_bytes(self._last, picture, mode=FILE_MODE)
        write_shape(directory / _NOTE, result)
        with self._lock:
            self._known[result.point] = result

    def noted(self, points: Iterable[PointSummary]) -> list[PointSummary]:
        """Add to each point what its last boot test came to."""
        summaries = list(points)
        with self._lock:
            known = {point.point: self._of(point.point) for point in summaries}
            self._known = known
        return [
            point if known[point.point] is None else point.model_copy(update={"boot_test": known[point.point]})
            for point in summaries
        ]

    def picture(self, point: PointId | None) -> bytes:
        """Give the picture of a point's last boot test, or of the last one of all.

        Raises:
            NotFound: ``no-picture``.
        """
        path = self._last if point is None else self._layout.point(point) / _PICTURE
        with store_errors(path):
            if path.exists():
                return path.read_bytes()
        raise NotFound(
            "no-picture",
            f"there is no picture of a boot test{'' if point is None else f' from point {point}'}",
            hint="vmreplica boot-test VM takes one, if the VM has a display; vmreplica points VM shows what was tested",
        )

    @property
    def _last(self) -> Path:
        return self._layout.root / _PICTURE

    def _of(self, point: PointId) -> BootResult | None:
        if point in self._known:
            return self._known[point]
        path = self._layout.point(point) / _NOTE
        try:
            return read_shape(path, BootResult) if path.exists() else None
        except Corrupt as error:
            _log.warning("a boot test's result is unreadable: as if there had been none", why=error.message)
            return None

"""Single points behind a real API, without a store."""

import datetime as dt
from collections.abc import Callable
from typing import Protocol

from point_kit import VM as VM_ID
from point_kit import make_summary

from vmreplica.model.errors import NotFound
from vmreplica.model.point import PointSummary
from vmreplica.model.report import TaskReport
from vmreplica.model.taking import ExportedDisk, MountedDisk, PointExportReport, PointExportWish, PointMount

SINCE = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
POINT = "20261122T102500Z-00000002"


class Polled(Protocol):
    """What shows the progress of acts."""

    progress: list[TaskReport]


class CancelsTasks:
    """What shows the progress of acts, and takes note of those that shall stop."""

    progress: list[TaskReport]
    asked: list[tuple[object, ...]]

    def cancel_task(self, task_id: str) -> TaskReport:
        """Take note."""
        self.asked.append(("cancel_task", task_id))
        return self.progress[0]


class SmallSingle:
    """Everything works, but points that are not pinned or mounted cannot be unpinned or unmounted."""

    def __init__(self, tasks: Polled, note: Callable[..., None]) -> None:
        self._tasks = tasks
        self._note = note
        self.warnings: tuple[str, ...] = ()
        self.pinned: set[str] = set()
        self.summary = make_summary(POINT, {"vda": 1 << 30}, instant=SINCE)

    def pin(self, vm: str, point: str, reason: str) -> PointSummary:
        """Pin."""
        self._note("pin", vm, point, reason)
        self.pinned.add(point)
        return self.summary

    def unpin(self, vm: str, point: str) -> PointSummary:
        """Unpin."""
        self._note("unpin", vm, point)
        if point not in self.pinned:
            raise NotFound("point-not-pinned", f"point {point} of {vm} is not pinned", hint=f"vmreplica points {vm}")
        return self.summary

    def plan_export(self, vm: str, point: str, wish: PointExportWish) -> PointExportReport:
        """Plan."""
        self._note("plan-export", vm, point, wish)
        disk = ExportedDisk(target="vda", path=wish.to, size=1 << 30, file_bytes=1 << 20)
        return PointExportReport(
            vm=VM_ID, name=vm, point=POINT, format=wish.format, disks=(disk,), warnings=self.warnings
        )

    def export(self, vm: str, point: str, wish: PointExportWish) -> TaskReport:
        """Export."""
        report = self.plan_export(vm, point, wish).model_copy(update={"checked": wish.check})
        what = f"export of point {POINT} of {vm}"
        self._tasks.progress = [TaskReport(id="t1", what=what, done=True, exported=report)]
        return TaskReport(id="t1", what=what, done=False)

    def mount(self, vm: str, point: str, *, seconds: int, even_damaged: bool) -> PointMount:
        """Mount."""
        self._note("mount", vm, point, seconds, even_damaged)
        socket = "/run/vmreplica/mounts/x/vda.sock"
        disk = MountedDisk(target="vda", size=1 << 30, uri=f"nbd+unix:///vda?socket={socket}", socket=socket)
        until = SINCE + dt.timedelta(seconds=seconds)
        return PointMount(vm=VM_ID, name=vm, point=POINT, disks=(disk,), since=SINCE, until=until)

    def unmount(self, vm: str, point: str | None) -> tuple[str, ...]:
        """Unmount."""
        self._note("unmount", vm, point)
        if vm != "web":
            raise NotFound("not-mounted", f"no point of {vm} is mounted", hint="vmreplica points VM")
        return (POINT,)

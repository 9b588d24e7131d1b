"""Boot tests behind a real API, without a hypervisor."""

import datetime as dt
from collections.abc import Callable
from typing import Protocol

from point_kit import VM as VM_ID

from vmreplica.model.boot import BootRecord, BootResult, BootSchedule, BootState, BootWish, boot_state
from vmreplica.model.errors import NotFound
from vmreplica.model.report import BootReport, FailoverPlan, FailoverStep, TaskReport

SINCE = dt.datetime(2026, 11, 22, 3, tzinfo=dt.UTC)
POINT = "20261122T102500Z-00000002"


def result(**changes: object) -> BootResult:
    """A boot test after which the guest was alive."""
    fields = {"point": POINT, "started": SINCE, "verdict": "alive", "sign": "the guest agent answers", "seconds": 12.4,
              "took": 15.0, "picture": True, **changes}  # fmt: skip
    return BootResult.model_validate(fields)


class Polled(Protocol):
    """What shows the progress of acts."""

    progress: list[TaskReport]


class SmallBoots:
    """Every test comes to what ``result`` says."""

    def __init__(self, tasks: Polled, note: Callable[..., None]) -> None:
        self._tasks = tasks
        self._note = note
        self.result = result()
        self.warnings: tuple[str, ...] = ()

    def plan(self, vm: str, point: str | None, wish: BootWish) -> FailoverPlan:
        """Plan."""
        self._note("plan-boot", vm, point, wish.sign.text(), wish.limit, wish.network)
        steps = (FailoverStep(name="wait", text=f"wait for {wish.sign.described()}"),)
        return FailoverPlan(
            vm=VM_ID, name=vm, kind="boot-test", point=point or POINT, instant=SINCE, loses_seconds=0.0, newer_points=0,
            steps=steps, warnings=self.warnings,
        )  # fmt: skip

    def begin(self, vm: str, point: str | None, wish: BootWish) -> TaskReport:
        """Begin."""
        self._note("boot", vm, point, wish.sign.text())
        report = BootReport(vm=VM_ID, name=vm, result=self.result)
        self._tasks.progress = [TaskReport(id="t1", what=f"boot test of {vm}", done=True, booted=report)]
        return TaskReport(id="t1", what=f"boot test of {vm}", done=False)

    def schedule(self, vm: str, *, every: int | None, at: str | None, wish: BootWish) -> BootState | None:
        """Take note."""
        self._note("schedule-boots", vm, every, at, wish.sign.text())
        schedule = BootSchedule(every=every, at=at, wish=wish, since=SINCE) if every else None
        return boot_state(BootRecord(schedule=schedule), dt.UTC)

    def picture(self, vm: str, point: str | None) -> bytes:
        """Give the same one of every VM called web."""
        self._note("picture", vm, point)
        if vm != "web":
            raise NotFound("no-picture", f"there is no picture of {vm}", hint="vmreplica boot-test VM")
        return b"\x89PNG of web"

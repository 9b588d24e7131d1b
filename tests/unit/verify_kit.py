"""The part of the small agent that verifies points."""

import datetime as dt

from point_kit import VM as VM_ID

from vmreplica.model.report import TaskReport
from vmreplica.model.verified import DiskVerdict, Verified, VerifyReport, WrongRange

WHEN = dt.datetime(2026, 11, 22, 3, tzinfo=dt.UTC)
POINT, FIXED = "20261122T102500Z-00000002", "20261122T103000Z-00000003"

WRONG = DiskVerdict(
    target="vda",
    verdict="wrong",
    how="blocks",
    read_bytes=5 << 20,
    wrong_bytes=12 * 4096,
    wrong=tuple(WrongRange(offset=place << 20, length=4096) for place in range(12)),
)
EQUAL = DiskVerdict(target="vda", verdict="equal", how="blocks", read_bytes=5 << 20)
UNPROVEN = DiskVerdict(target="vda", verdict="unproven", how="none", why="it carries no \x1b[2J sum")


def verified(disk: DiskVerdict, point: str = POINT) -> Verified:
    """A verdict on a point of one disk."""
    return Verified(point=point, when=WHEN, verdict=disk.verdict, disks=(disk,))


class VerifiesPoints:
    """Answers what a verification is asked, beside the rest of the small agent."""

    progress: list[TaskReport]
    #: What each verification finds.
    found: DiskVerdict = EQUAL

    def verify(self, vm: str, *, point: str | None, repair: bool, rate: int | None) -> TaskReport:
        """Find what ``found`` says; a repair makes it right."""
        self._asked("verify", vm, point, repair, rate)
        repaired = None
        if repair and self.found.verdict == "wrong":
            repaired = Verified(point=FIXED, when=WHEN, verdict="repaired", disks=(EQUAL,))
        report = VerifyReport(
            vm=VM_ID,
            name=vm,
            instant=WHEN,
            verified=verified(self.found, point or POINT),
            seconds=2.0,
            repaired=repaired,
            repair_wire_bytes=4096 if repaired else 0,
        )
        self.progress = [TaskReport(id="t1", what=f"verification of {vm}", done=True, verified=report)]
        return TaskReport(id="t1", what=f"verification of {vm}", done=False)

    def cancel_verify(self, vm: str) -> None:
        """End it."""
        self._asked("cancel_verify", vm)

    def _asked(self, *what: object) -> None:
        raise NotImplementedError

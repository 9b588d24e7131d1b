"""Watches the health of all relationships of this host, on both sides, and writes down and tells each change of it."""

import datetime as dt
import threading
from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.agent.space import SpaceWatch
from vmreplica.agent.telling import Telling
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.events import EventSeverity
from vmreplica.model.health import Health, Level, Reason, worse
from vmreplica.model.ids import VmId
from vmreplica.model.report import RelationshipReport, StatusReport
from vmreplica.model.telling import HealthMessage, HealthTestReport

_log: Final = structlog.get_logger(__name__)

#: Seconds between looks.
LOOK: Final = 5.0
_SEVERITIES: Final[dict[Level, EventSeverity]] = {
    Level.NORMAL: "info",
    Level.WARNING: "warning",
    Level.CRITICAL: "critical",
}
_WELL: Final = Health(level=Level.NORMAL)
_Key = tuple[VmId, str]


class HealthWatch:
    """One thread. What was told last is read from the journal after a restart.

    Args:
        status: tells how all relationships are.
        journal: history.
        telling: who is told.
        space: takes samples of the room of the store.
    """

    def __init__(
        self, status: Callable[[], StatusReport], journal: Journal, telling: Telling, space: SpaceWatch
    ) -> None:
        self._status = status
        self._journal = journal
        self._telling = telling
        self._space = space
        self._known: dict[_Key, Health] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="health", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._telling.start()
        self._thread.start()

    def stop(self) -> None:
        """End within a moment."""
        self._stopping.set()
        self._telling.stop()
        if self._thread.is_alive():
            self._thread.join()

    def test(self) -> HealthTestReport:
        """Tell whoever is told of changes, as a test.

        Raises:
            Conflict: ``nobody-to-tell``.
        """
        report = self._status()
        message = HealthMessage(
            test=True,
            at=report.now,
            host=report.host,
            host_id=report.host_id,
            vm=None,
            name="",
            role=None,
            peer="",
            state="",
            was=_WELL,
            health=_WELL,
        )
        return self._telling.test(message)

    def look(self) -> None:
        """Look at all relationships once."""
        self._space.look()
        report = self._status()
        present = {(row.vm, row.role) for row in report.relationships}
        for row in report.relationships:
            self._journal.know(row.vm, row.name)
            self._compare(report, row)
        for key in [key for key in self._known if key not in present]:
            del self._known[key]

    def _work(self) -> None:
        while not self._stopping.wait(LOOK):
            try:
                self.look()
            except VmReplicaError as error:
                _log.warning("cannot look at the health of the VMs", why=error.message)
            except Exception:  # noqa: BLE001 - the next look may go well
                _log.exception("a look at the health of the VMs failed")

    def _compare(self, report: StatusReport, row: RelationshipReport) -> None:
        key = (row.vm, row.role)
        if key not in self._known:
            self._known[key] = self._told_last(row)
        was, health = self._known[key], row.health
        if _same(was, health) or (_unsure(row) and not worse(health.level, was.level)):
            return
        self._known[key] = health
        self._write_down(row, was)
        self._telling.put(
            HealthMessage(
                at=report.now.astimezone(dt.UTC),
                host=report.host,
                host_id=report.host_id,
                vm=row.vm,
                name=row.name,
                role=row.role,
                peer=row.peer or row.peer_id,
                state=row.state,
                was=was,
                health=health,
            )
        )

    def _write_down(self, row: RelationshipReport, was: Health) -> None:
        health = row.health
        text = "; ".join(reason.text for reason in health.reasons) or "all is well"
        self._journal.event(
            row.vm,
            "health",
            _leading(health),
            f"health {was.level} -> {health.level}: {text}",
            name=row.name,
            severity=_SEVERITIES[health.level],
            role=row.role,
            was=was.level.value,
            health=health.level.value,
            reasons=[reason.model_dump(mode="json") for reason in health.reasons],
        )

    def _told_last(self, row: RelationshipReport) -> Health:
        """Find what was told before the agent was started; a VM of which nothing was told was well."""
        for event in reversed(self._journal.events(limit=20, vm=row.vm, kinds=("health",))):
            if event.details.get("role") == row.role:
                try:
                    reasons = tuple(Reason.model_validate(reason) for reason in event.details["reasons"])
                    return Health(level=Level(event.details["health"]), reasons=reasons)
                except (KeyError, TypeError, ValueError):
                    break
        return _WELL


def _leading(health: Health) -> str:
    """Name the first of the most urgent reasons."""
    return next((reason.code for reason in health.reasons if reason.level is health.level), "healthy")


def _same(was: Health, now: Health) -> bool:
    """Tell whether nothing has changed that anybody must know: figures in the texts change all the time."""
    return was.level is now.level and _codes(was) == _codes(now)


def _codes(health: Health) -> frozenset[tuple[str, Level]]:
    return frozenset((reason.code, reason.level) for reason in health.reasons)


def _unsure(row: RelationshipReport) -> bool:
    """Tell whether nothing is known yet, since the agent was started: things may be worse, but not be said better."""
    return row.role == "primary" and row.last_cycle is None and row.waits is None

"""What the API asks about the past: runs and events, of one VM or of the host."""

from collections.abc import Callable
from typing import Final

from vmreplica.agent.journal import Journal, Side
from vmreplica.model.events import EventsReport, JournalEvent, RecordsQuery
from vmreplica.model.ids import VmId
from vmreplica.model.report import HistoryReport
from vmreplica.model.telling import HealthTestReport

#: Kinds that are runs: history shows their reports.
RUNS: Final = ("cycle", "receipt")
_SIDES: Final[tuple[tuple[str, Side], ...]] = (("cycle", "sent"), ("receipt", "received"))


class Records:
    """Thread-safe.

    Args:
        journal: where everything is written down.
        resolve: finds a VM's id by name or UUID, of those there are and those there were; raises NotFound.
        test: tells whoever is told of changes of health.
    """

    def __init__(self, journal: Journal, resolve: Callable[[str], VmId], test: Callable[[], HealthTestReport]) -> None:
        #: Tells whoever is told of changes of health, as a test.
        self.health_test = test
        #: What all runs and events since the agent's start add up to.
        self.totals = journal.totals
        self._journal = journal
        self._resolve = resolve

    def history(self, vm: str, query: RecordsQuery) -> HistoryReport:
        """List a VM's runs and what else happened to it, each newest first.

        Raises:
            NotFound: ``vm-unknown``.
        """
        known = self._resolve(vm)
        runs, received = (
            self._journal.history(known, query.limit, since=query.since, side=side)
            if not query.kinds or kind in query.kinds
            else ()
            for kind, side in _SIDES
        )
        others = tuple(kind for kind in query.kinds if kind not in RUNS)
        events: tuple[JournalEvent, ...] = ()
        if others or not query.kinds:
            found = self._journal.events(limit=query.limit, vm=known, kinds=others, but=RUNS, since=query.since)
            events = tuple(reversed(found))
        return HistoryReport(vm=vm, cycles=runs, received=received, events=events)

    def events(self, vm: str | None, query: RecordsQuery, after: int | None) -> EventsReport:
        """List events, oldest first.

        Args:
            vm: of this VM; None: of all and of the host.
            query: which ones.
            after: such as follow the event with this id; None: the newest.

        Raises:
            NotFound: ``vm-unknown``.
        """
        known = None if vm is None else self._resolve(vm)
        newest = self._journal.newest()
        found = self._journal.events(limit=query.limit, vm=known, kinds=query.kinds, since=query.since, after=after)
        full = len(found) == query.limit and after is not None
        last = found[-1].id if found else (after or 0)
        return EventsReport(events=found, newest=last if full else max(newest, last))

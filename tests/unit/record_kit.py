"""The past behind a real API: events in a list, runs as given."""

from collections.abc import Callable

from vmreplica.agent.totals import Totals
from vmreplica.model.events import EventsReport, JournalEvent, RecordsQuery
from vmreplica.model.report import CycleReport, HistoryReport
from vmreplica.model.telling import HealthTestReport, TellingResult


class SmallRecords:
    """Knows what its fields say."""

    def __init__(self, note: Callable[..., None], resolve: Callable[[str], str], runs: tuple[CycleReport, ...]) -> None:
        self._note = note
        self._resolve = resolve
        self.runs = runs
        self.happened: list[JournalEvent] = []
        self.totals = Totals()
        self.tested = HealthTestReport(
            hook=TellingResult(to="/usr/local/bin/hook", ok=True, text="it was told", seconds=0.1), webhook=None
        )

    def history(self, vm: str, query: RecordsQuery) -> HistoryReport:
        """List the first runs, and all events."""
        self._note("history", vm, query.limit, *query.kinds, *([query.since] if query.since else []))
        self._resolve(vm)
        return HistoryReport(vm=vm, cycles=self.runs[: query.limit], events=tuple(self.happened))

    def events(self, vm: str | None, query: RecordsQuery, after: int | None) -> EventsReport:
        """List events as the journal does."""
        self._note("events", vm, query.limit, after)
        if vm is not None:
            self._resolve(vm)
        chosen = [event for event in self.happened if not query.kinds or event.kind in query.kinds]
        found = (
            chosen[-query.limit :] if after is None else [event for event in chosen if event.id > after][: query.limit]
        )
        newest = max((event.id for event in self.happened), default=0)
        return EventsReport(events=tuple(found), newest=found[-1].id if found else max(newest, after or 0))

    def health_test(self) -> HealthTestReport:
        """Say what was prepared."""
        self._note("health-test")
        return self.tested

"""Prometheus text of a status report and of the sums since the agent's start; a registry of its own per rendering."""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vmreplica.api.facade import TotalsFacade
from vmreplica.model.health import Level
from vmreplica.model.report import RelationshipReport, StatusReport
from vmreplica.model.states import State

_LABELS = ("vm", "name", "role", "peer")
_RUN_LABELS = ("vm", "name", "side")
_HEALTH = {Level.NORMAL: 0, Level.WARNING: 1, Level.CRITICAL: 2}
_SIDES = ("sent", "received")
#: Measures of a relationship; see ``model.health.measures_of``.
_MEASURES: Final = {
    "missed_cycles": "Turns that passed before the last cycle began.",
    "scrub_oldest_seconds": "Since the point that waits longest for scrub was checked.",
    "scrub_period_seconds": "Within which every point is to be checked.",
    "scrub_damaged": "1 when scrub found damage that is there still.",
    "verify_age_seconds": "Since the replica was last compared with its primary.",
    "verify_same": "1 when that found them to be the same.",
    "boot_test_age_seconds": "Since the last boot test.",
    "boot_test_period_seconds": "Within which one is due.",
    "boot_test_failures": "Boot tests that failed, one after the other, up to now.",
    "quiesce_failures": "Attempts to quiesce the guest that failed, one after the other, up to now.",
    "guest_frozen": "1 when the guest's file systems are frozen though no point is being begun.",
}
#: The same of the store, which all replicas of a host share.
_STORE: Final = {
    "store_free_bytes": "Free bytes of the file system of the recovery points.",
    "store_min_free_bytes": "Bytes of it that are always left free.",
    "store_full_seconds": "Until no more than that will be free, as it went lately; absent when it does not shrink.",
}


def render_metrics(report: StatusReport, totals: TotalsFacade) -> bytes:
    """Render everything there is to measure on this host."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Report(report, totals))
    return generate_latest(registry)


def families(report: StatusReport, totals: TotalsFacade) -> Iterable[Metric]:
    """List all metrics, also those without a sample."""
    return _Report(report, totals).collect()


class _Report(Collector):
    """A collector that knows one report."""

    def __init__(self, report: StatusReport, totals: TotalsFacade) -> None:
        self._report = report
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("vmreplica_agent_info", "The agent of this host.", labels=("host", "version"))
        info.add_metric((self._report.host, self._report.version), 1)
        yield info
        yield from _relationships(self._report.relationships)
        for name, text in _MEASURES.items():
            yield _gauge(name, text, ((r, r.measures.get(name)) for r in self._report.relationships))
        yield from _store(self._report.relationships)
        yield from _runs(self._report.relationships, self._totals)
        events = CounterMetricFamily("vmreplica_events", "What the journal took note of.", labels=("kind", "severity"))
        for (kind, severity), count in sorted(self._totals.events().items()):
            events.add_metric((kind, severity), count)
        yield events


def _relationships(relations: tuple[RelationshipReport, ...]) -> Iterator[Metric]:
    yield _gauge("newest_point_age_seconds", "Age of the newest recovery point.",
                 ((r, r.point_age) for r in relations))  # fmt: skip
    yield _gauge("interval_seconds", "The promised age of the newest recovery point.",
                 ((r, r.interval) for r in relations))  # fmt: skip
    yield _gauge("points", "Recovery points.", ((r, r.points) for r in relations))
    yield _gauge("health", "0 normal, 1 warning, 2 critical.", ((r, _HEALTH[r.health.level]) for r in relations))
    yield _reasons(relations)
    yield _gauge("last_cycle_seconds", "Duration of the last cycle.",
                 ((r, r.last_cycle.seconds) for r in relations if r.last_cycle))  # fmt: skip
    yield _gauge("last_cycle_guest_bytes", "Bytes that the last cycle read from the guest.",
                 ((r, r.last_cycle.guest_bytes) for r in relations if r.last_cycle))  # fmt: skip
    yield _gauge("last_cycle_wire_bytes", "Bytes that the last cycle sent.",
                 ((r, r.last_cycle.wire_bytes) for r in relations if r.last_cycle))  # fmt: skip
    yield _states(relations)


def _gauge(name: str, text: str, samples: Iterator[tuple[RelationshipReport, float | None]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"vmreplica_{name}", text, labels=_LABELS)
    for relation, value in samples:
        if value is not None:
            family.add_metric(_labels(relation), value)
    return family


def _reasons(relations: tuple[RelationshipReport, ...]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "vmreplica_health_reason",
        "1 for each reason of a health that is not normal.",
        labels=(*_LABELS, "code", "level"),
    )
    for relation in relations:
        for code, level in sorted({(reason.code, reason.level.value) for reason in relation.health.reasons}):
            family.add_metric((*_labels(relation), code, level), 1)
    return family


def _states(relations: tuple[RelationshipReport, ...]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("vmreplica_state", "1 for the present state, 0 for others.", labels=(*_LABELS, "state"))
    for relation in relations:
        for state in State:
            family.add_metric((*_labels(relation), state.value), float(relation.state is state))
    return family


def _store(relations: tuple[RelationshipReport, ...]) -> Iterator[Metric]:
    measures = next((r.measures for r in relations if "store_free_bytes" in r.measures), {})
    for name, text in _STORE.items():
        family = GaugeMetricFamily(f"vmreplica_{name}", text)
        if name in measures:
            family.add_metric((), measures[name])
        yield family


def _runs(relations: tuple[RelationshipReport, ...], totals: TotalsFacade) -> Iterator[Metric]:
    runs = _counter("runs", "Cycles that ended (sent) and points that came (received).", "kind", "outcome")
    guest = _counter("run_guest_bytes", "Bytes of guests that runs were about.")
    wire = _counter("run_wire_bytes", "Bytes that runs put on the network, or took from it.")
    seconds = _counter("run_seconds", "Time that runs took.")
    waiting = _counter(
        "run_waiting_seconds", "Time that they waited: in the queue, for the rate limit, a base.", "what"
    )
    for vm, name in sorted({(relation.vm, relation.name) for relation in relations}):
        for side in _SIDES:
            sums, labels = totals.of(vm, side), (vm, name, side)
            for (kind, outcome), count in sorted(sums.runs.items()):
                runs.add_metric((*labels, kind, outcome), count)
            guest.add_metric(labels, sums.guest_bytes)
            wire.add_metric(labels, sums.wire_bytes)
            seconds.add_metric(labels, sums.seconds)
            for what, waited in sorted(sums.waiting.items()):
                waiting.add_metric((*labels, what), waited)
    yield from (runs, guest, wire, seconds, waiting)


def _counter(name: str, text: str, *more: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"vmreplica_{name}", f"{text} Since the agent's start.", labels=(*_RUN_LABELS, *more))


def _labels(relation: RelationshipReport) -> tuple[str, ...]:
    return relation.vm, relation.name, relation.role, relation.peer or relation.peer_id

"""Prometheus text of a status report: pure, with a registry of its own per rendering."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vmreplica.model.health import Level
from vmreplica.model.report import RelationshipReport, StatusReport
from vmreplica.model.states import State

_LABELS = ("vm", "name", "role", "peer")
_HEALTH = {Level.NORMAL: 0, Level.WARNING: 1, Level.CRITICAL: 2}


def render_metrics(report: StatusReport) -> bytes:
    """Render gauges per relationship: age of the newest point, state, health, the last cycle."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Report(report))
    return generate_latest(registry)


class _Report(Collector):
    """A collector that knows one report."""

    def __init__(self, report: StatusReport) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("vmreplica_agent_info", "The agent of this host.", labels=("host", "version"))
        info.add_metric((self._report.host, self._report.version), 1)
        yield info
        relations = self._report.relationships
        yield _gauge("newest_point_age_seconds", "Age of the newest recovery point.",
                     ((r, r.point_age) for r in relations))  # fmt: skip
        yield _gauge("interval_seconds", "The promised age of the newest recovery point.",
                     ((r, r.interval) for r in relations))  # fmt: skip
        yield _gauge("points", "Recovery points.", ((r, r.points) for r in relations))
        yield _gauge("health", "0 normal, 1 warning, 2 critical.", ((r, _HEALTH[r.health.level]) for r in relations))
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


def _states(relations: tuple[RelationshipReport, ...]) -> GaugeMetricFamily:
    family = GaugeMetricFamily("vmreplica_state", "1 for the present state, 0 for others.", labels=(*_LABELS, "state"))
    for relation in relations:
        for state in State:
            family.add_metric((*_labels(relation), state.value), float(relation.state is state))
    return family


def _labels(relation: RelationshipReport) -> tuple[str, ...]:
    return relation.vm, relation.name, relation.role, relation.peer or relation.peer_id

"""Every change of health is written down and told once, on both sides, also over restarts of the agent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_kit import NOW, relation

from vmreplica.agent.config import HealthSection
from vmreplica.agent.health_watch import HealthWatch
from vmreplica.agent.journal import Journal
from vmreplica.agent.space import SpaceWatch
from vmreplica.agent.telling import Telling
from vmreplica.model.health import Facts, Health, Level, judge, measures_of
from vmreplica.model.health_catalogue import CATALOGUE
from vmreplica.model.proof import BootFacts, QuiesceFacts, ScrubFacts, SpaceFacts, VerifyFacts
from vmreplica.model.report import RelationshipReport, StatusReport
from vmreplica.model.states import State
from vmreplica.model.telling import HealthMessage

pytestmark = pytest.mark.points

HOUR, DAY = 3600.0, 86400.0
WELL = Health(level=Level.NORMAL)


def facts(**changes: object) -> Facts:
    given: dict[str, object] = {"state": State.REPLICATING, "interval": 300, "point_age": 60.0, **changes}
    return Facts(**given)  # type: ignore[arg-type]


OLD = judge(facts(point_age=900.0))
VERY_OLD = judge(facts(point_age=9000.0))


class _Told(Telling):
    """Remembers what it would have told."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(HealthSection(), journal)
        self.messages: list[HealthMessage] = []

    def put(self, message: HealthMessage) -> None:
        """Remember it."""
        self.messages.append(message)


class Host:
    """A watch over relationships that stand in a list."""

    def __init__(self, root: Path) -> None:
        self.journal = Journal(root / "journal.db")
        self.telling = _Told(self.journal)
        self.rows: list[RelationshipReport] = []
        self.watch = HealthWatch(self._status, self.journal, self.telling, SpaceWatch(root, 0, self.journal))

    def look(self, *rows: RelationshipReport) -> list[tuple[str | None, str, str]]:
        """Look once; gives who was told to have changed from what to what."""
        self.rows, self.telling.messages = list(rows), []
        self.watch.look()
        return [(told.role, told.was.level.value, told.health.level.value) for told in self.telling.messages]

    def codes(self) -> list[str]:
        """Tell the codes of all changes in the journal."""
        return [event.code for event in self.journal.events(limit=100, kinds=("health",))]

    def _status(self) -> StatusReport:
        return StatusReport(host="main", host_id="a" * 32, version="0", now=NOW, relationships=tuple(self.rows))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.journal.close()


def test_changes_are_told_once_and_written_down_with_their_leading_reason(host: Host) -> None:
    assert host.look(relation("web")) == []
    assert host.look(relation("web", health=OLD)) == [("primary", "normal", "warning")]
    assert host.look(relation("web", health=judge(facts(point_age=901.0)))) == [], "only a figure in the text changed"
    assert host.look(relation("web", health=VERY_OLD)) == [("primary", "warning", "critical")]
    assert host.look(relation("web")) == [("primary", "critical", "normal")]
    assert host.codes() == ["rpo-exceeded", "rpo-exceeded", "healthy"]
    last = host.journal.events(limit=3, kinds=("health",))[1]
    assert (last.severity, last.details["was"], last.details["health"]) == ("critical", "warning", "critical")
    assert last.details["reasons"][0]["hint"]


def test_both_sides_of_a_vm_are_told_apart(host: Host) -> None:
    here, there = relation("web"), relation("web", role="replica")
    assert host.look(here, there) == []
    assert host.look(here, there.model_copy(update={"health": OLD})) == [("replica", "normal", "warning")]
    assert host.look(here.model_copy(update={"health": OLD}), there) == [
        ("primary", "normal", "warning"),
        ("replica", "warning", "normal"),
    ]


def test_after_a_restart_nothing_is_told_twice_and_nothing_is_missed(tmp_path: Path) -> None:
    first = Host(tmp_path)
    first.look(relation("web", health=OLD))
    first.journal.close()
    again = Host(tmp_path)
    assert again.look(relation("web", health=OLD)) == []
    assert again.look(relation("web")) == [("primary", "warning", "normal")]
    again.journal.close()


def test_a_vm_of_which_nothing_is_known_yet_is_not_said_to_be_better(tmp_path: Path) -> None:
    first = Host(tmp_path)
    first.look(relation("web", health=OLD))
    first.journal.close()
    again = Host(tmp_path)
    unknown = relation("web", state=State.READY, latest=None, point_age=None, last_cycle=None)
    assert again.look(unknown) == []
    assert again.look(unknown.model_copy(update={"health": VERY_OLD})) == [("primary", "warning", "critical")]
    assert again.look(relation("web")) == [("primary", "critical", "normal")]
    again.journal.close()


def test_a_vm_that_is_dissolved_and_comes_back_is_judged_by_what_was_told_last(host: Host) -> None:
    host.look(relation("web", health=OLD))
    assert host.look() == []
    assert host.look(relation("web", health=OLD)) == []


@pytest.mark.parametrize(
    ("more", "level", "code"),
    [
        ({"scrub": ScrubFacts(period=7 * DAY, age=DAY)}, Level.NORMAL, None),
        ({"scrub": ScrubFacts(period=7 * DAY, age=9 * DAY)}, Level.WARNING, "scrub-overdue"),
        ({"scrub": ScrubFacts(period=None, age=99 * DAY)}, Level.NORMAL, None),
        ({"scrub": ScrubFacts(period=None, age=None, damage="vda of X")}, Level.CRITICAL, "scrub-damage"),
        ({"scrub": ScrubFacts(period=None, age=1, damage="x", newest_good=True)}, Level.WARNING, "scrub-damage"),
        ({"verify": VerifyFacts(age=1, same=True)}, Level.NORMAL, None),
        ({"verify": VerifyFacts(age=1, same=False)}, Level.CRITICAL, "verify-differs"),
        ({"boot": BootFacts(period=DAY, age=DAY)}, Level.NORMAL, None),
        ({"boot": BootFacts(period=DAY, age=DAY, failures=1)}, Level.WARNING, "boot-test-failed"),
        ({"boot": BootFacts(period=DAY, age=DAY, failures=2)}, Level.CRITICAL, "boot-test-failed"),
        ({"boot": BootFacts(period=DAY, age=3 * DAY)}, Level.WARNING, "boot-test-overdue"),
        ({"boot": BootFacts(period=None, age=300 * DAY)}, Level.NORMAL, None),
        ({"quiesce": QuiesceFacts()}, Level.NORMAL, None),
        ({"quiesce": QuiesceFacts(failures=3, text="no agent")}, Level.WARNING, "quiesce-failing"),
        ({"quiesce": QuiesceFacts(frozen=True)}, Level.CRITICAL, "guest-frozen"),
        ({"space": SpaceFacts(place="/s", free=10, min_free=5)}, Level.NORMAL, None),
        ({"space": SpaceFacts(place="/s", free=10, min_free=5, full_in=8 * DAY)}, Level.NORMAL, None),
        ({"space": SpaceFacts(place="/s", free=10, min_free=5, full_in=3 * DAY)}, Level.WARNING, "space-low"),
        ({"space": SpaceFacts(place="/s", free=10, min_free=5, full_in=5 * HOUR)}, Level.CRITICAL, "space-low"),
        ({"space": SpaceFacts(place="/s", free=4, min_free=5, full_in=0)}, Level.CRITICAL, "space-out"),
        ({"missed_in_a_row": 2}, Level.WARNING, "cycles-missed"),
        ({"state": State.RESYNC}, Level.WARNING, "resync-needed"),
    ],
)
def test_each_fact_has_its_level_and_a_code_of_the_catalogue(
    more: dict[str, object], level: Level, code: str | None
) -> None:
    health = judge(facts(**more))
    assert health.level is level
    assert [reason.code for reason in health.reasons] == ([code] if code else [])
    for reason in health.reasons:
        assert reason.hint == CATALOGUE[reason.code].remedy
        assert level.value in CATALOGUE[reason.code].levels


def test_a_forecast_is_told_no_finer_than_it_is() -> None:
    text = judge(facts(space=SpaceFacts(place="/s", free=1 << 30, min_free=5, full_in=3.1 * DAY))).reasons[0].text
    assert text == "1.0 GiB free on /s: full in about 3 days, as it went lately"


def test_measures_have_what_is_known_only() -> None:
    found = measures_of(facts(boot=BootFacts(period=None, age=5.0), space=SpaceFacts(place="/", free=3, min_free=1)))
    assert found == {
        "missed_cycles": 0,
        "boot_test_age_seconds": 5,
        "boot_test_failures": 0,
        "store_free_bytes": 3,
        "store_min_free_bytes": 1,
    }


def test_the_primary_passes_on_what_its_replica_says_of_the_worth_of_its_points() -> None:
    told = judge(facts(space=SpaceFacts(place="/s", free=4, min_free=5))).reasons
    health = judge(facts(told=told))
    assert (health.level, health.reasons) == (Level.CRITICAL, told)

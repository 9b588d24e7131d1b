"""Scrub of a host: whose turn it is, what is kept and told, and that it stops, goes on and holds its rate."""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from point_kit import VM
from repository_kit import OWNER, SIZE, Primary, fill, new_replica, noise, offer, open_repository
from scrub_kit import flipped

from vmreplica.agent import scrubbing
from vmreplica.agent.journal import Journal
from vmreplica.agent.scrubbing import Scrubbing
from vmreplica.agent.tasks import Tasks
from vmreplica.model.damage import Damage
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.health import Facts, Level, judge
from vmreplica.model.point import Manifest
from vmreplica.model.report import TaskReport
from vmreplica.model.scrubbing import Checked, ScrubRecord, is_due, turns
from vmreplica.model.states import State
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.index import read_heads
from vmreplica.repository import Replica, Repository
from vmreplica.repository.layout import Layout
from vmreplica.repository.scrub import Found, Moved, Tools, scrub_point
from vmreplica.repository.scrub_record import read_record

pytestmark = pytest.mark.points
WEEK = 7 * 86400
UTC = dt.UTC


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class _Host:
    """A repository with one VM of three points, and its scrub."""

    def __init__(self, tmp_path: Path, *, period: int | None = None, rate: int | None = None) -> None:
        self.replica = new_replica(tmp_path / "store", keep=9)
        self.primary = Primary(patches=True)
        fill(self.replica, self.primary, 3)
        self.points = sorted(self.primary.expected)
        self.repository: Repository = open_repository(tmp_path / "store")
        self.replica = self.repository.replica(VM)
        self.journal, self.tasks = Journal(tmp_path / "journal.db"), Tasks()
        self.scrubbing = self.scrub(period=period, rate=rate)

    def scrub(self, *, period: int | None, rate: int | None = None) -> Scrubbing:
        return Scrubbing(
            self.repository, self.journal, self.tasks, find=lambda _vm: self.replica, period=period, rate=rate
        )

    def told(self) -> list[str]:
        return [event.code for event in self.journal.events(limit=100, kinds=("scrub",))]

    def wait(self, task: TaskReport) -> TaskReport:
        _until(lambda: self.tasks.get(task.id).report().done)
        return self.tasks.get(task.id).report()


def _first_data(replica: Replica, point: str) -> int:
    with Layout(replica.dir).index(point, "vda").open("rb") as fh:
        return next(head.data_offset for head, _records in read_heads(fh) if head.data_length) + 30


def test_a_scrub_that_is_asked_for_finds_tells_and_keeps_damage_and_its_end(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    image = host.replica.image(host.points[0], "vda")
    with flipped(image, _first_data(host.replica, host.points[0]), 2):
        report = host.wait(host.scrubbing.begin("web", None)).scrubbed
        assert report is not None
        assert (report.points, report.damaged) == (tuple(host.points), 1)
        assert report.read_bytes > SIZE // 8
        assert host.points[0] in host.replica.damages.quarantined()
        assert host.told() == ["scrub-damage", "scrubbed", "scrubbed"]
        facts = host.scrubbing.facts(host.replica, dt.datetime.now(UTC))
        assert facts is not None
        assert host.points[0] in (facts.damage or "")
        host.wait(host.scrubbing.begin("web", host.points[0]))
        assert host.told().count("scrub-damage") == 1, "known damage is no news"
    report = host.wait(host.scrubbing.begin("web", host.points[0])).scrubbed
    assert report is not None
    assert (report.points, report.damaged) == ((host.points[0],), 0)
    assert not host.replica.damages.any()
    assert host.told()[-1] == "scrub-good-again"
    assert set(read_record(host.replica.dir).points) == set(host.points)


def test_health_is_critical_while_the_newest_point_is_damaged(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    now = dt.datetime.now(UTC)
    damage = Damage(point=host.points[-1], disk="vda", length=CLUSTER, file="vda.qcow2", what="data", text="rot")
    host.replica.damages.record(host.points[-1], [damage], now)
    scrub = host.scrubbing.facts(host.replica, now)
    health = judge(Facts(state=State.REPLICATING, interval=60, point_age=1.0, scrub=scrub))
    assert (health.level, health.reasons[0].code) == (Level.CRITICAL, "scrub-damage")
    host.replica.damages.record(host.points[-1], [], now)
    scrub = host.scrub(period=WEEK).facts(host.replica, host.replica.manifests()[0].published + dt.timedelta(days=30))
    health = judge(Facts(state=State.REPLICATING, interval=60, point_age=1.0, scrub=scrub))
    assert [reason.code for reason in health.reasons] == ["scrub-overdue"]


def test_points_are_checked_by_themselves_in_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The points of the kit are months old: all are due.
    monkeypatch.setattr(scrubbing, "_LOOK", 0.05)
    host = _Host(tmp_path, period=WEEK)
    host.scrubbing.start()
    _until(lambda: len(read_record(host.replica.dir).points) == 3)
    host.scrubbing.stop()
    assert host.told() == ["scrubbed"] * 3
    state = host.scrubbing.state(host.replica)
    assert state is not None
    assert state.oldest is not None
    assert (dt.datetime.now(UTC) - state.oldest).total_seconds() < 600


def test_a_point_that_cannot_be_checked_keeps_no_other_from_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "_LOOK", 0.05)
    host = _Host(tmp_path, period=WEEK)
    first = host.points[0]

    def moving(layout: Layout, manifest: Manifest, tools: Tools) -> Found:
        if manifest.point == first:
            raise Moved
        return scrub_point(layout, manifest, tools)

    monkeypatch.setattr("vmreplica.agent.scrubbing.scrub_point", moving)
    host.scrubbing.start()
    _until(lambda: set(read_record(host.replica.dir).points) == set(host.points[1:]))
    host.scrubbing.stop()


@pytest.mark.parametrize(("suffix", "misleads"), [("qcow2", True), ("index", False)])
def test_a_missing_file_is_damage(suffix: str, misleads: bool, tmp_path: Path) -> None:
    host = _Host(tmp_path)
    (host.replica.dir / "points" / host.points[1] / f"vda.{suffix}").unlink()
    report = host.wait(host.scrubbing.begin("web", host.points[1])).scrubbed
    assert report is not None
    assert [(damage.misleads, "missing" in damage.text) for damage in report.damages] == [(misleads, True)]


def test_the_rate_is_held_and_a_person_who_asks_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "_LOOK", 0.05)
    host = _Host(tmp_path, period=WEEK, rate=4096)
    host.scrubbing.start()
    time.sleep(1.0)
    assert not read_record(host.replica.dir).points, "a point has far more than a second's worth"
    began = time.monotonic()
    report = host.wait(host.scrubbing.begin("web", None)).scrubbed
    assert report is not None
    assert len(report.points) == 3
    assert time.monotonic() - began < 30
    host.scrubbing.stop()


def test_only_one_is_asked_for_at_a_time_and_unknown_points_are_refused(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    with host.scrubbing._turn:
        first = host.scrubbing.begin("web", None)
        with pytest.raises(Conflict) as caught:
            host.scrubbing.begin("web", None)
        assert caught.value.code == "scrub-runs"
    assert host.wait(first).error is None
    with pytest.raises(NotFound):
        host.scrubbing.begin("web", "20200101T000000Z-00000000")
    empty = open_repository(tmp_path / "other").create(VM, OWNER, offer())
    host.replica = empty
    with pytest.raises(NotFound) as nothing:
        host.scrubbing.begin("web", None)
    assert nothing.value.code == "no-points"
    assert host.scrubbing.state(empty) is None


def test_folds_and_new_points_do_not_mislead_a_scrub(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    host.replica.update(keep={"last": 2})
    for turn in range(4):
        task = host.scrubbing.begin("web", None)
        host.primary.latest = host.points[-1] if turn == 0 else host.primary.latest
        host.primary.send(host.replica, {"vda": {turn: noise(turn)}})
        host.replica.apply_retention()
        report = host.wait(task).scrubbed
        assert report is not None
        assert report.damaged == 0
    assert not host.replica.damages.any()


def test_a_pass_over_a_folded_image_goes_on_where_it_ended(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    host.replica.update(keep={"last": 1})
    host.replica.apply_retention()
    (manifest,) = host.replica.manifests()
    passing = scrubbing._Pass(host.replica, manifest, afresh=False)
    assert (passing.begin("vda"), passing.went_on) == (0, False)
    passing._noted -= 100
    passing.reached("vda", 7)
    again = scrubbing._Pass(host.replica, manifest, afresh=False)
    assert (again.begin("vda"), again.went_on) == (7, True)
    assert scrubbing._Pass(host.replica, manifest, afresh=True).begin("vda") == 0
    again.reached("vda", 0)
    assert not scrubbing._Pass(host.replica, manifest, afresh=False).went_on


def test_whose_turn_it_is(tmp_path: Path) -> None:
    host = _Host(tmp_path)
    manifests, now = host.replica.manifests(), dt.datetime.now(UTC)
    first = turns(manifests, ScrubRecord(), {})
    assert [turn.since for turn in first] == [manifest.published for manifest in manifests]
    known = ScrubRecord(points={manifests[0].point: Checked(at=now, digest=manifests[0].digest)})
    assert turns(manifests, known, {})[-1].point == manifests[0].point
    other = ScrubRecord(points={manifests[0].point: Checked(at=now, digest="")})
    assert turns(manifests, other, {})[0].since == manifests[0].published, "its files are others by now"
    merged = [manifests[0], manifests[1].model_copy(update={"merged": True})]
    assert turns(merged, ScrubRecord(), {manifests[1].point: now})[-1].since == now
    folded = [manifests[0].model_copy(update={"folded": True})]
    assert turns(folded, ScrubRecord(base_at=now), {})[0].since == now
    assert is_due(first[0], WEEK, first[0].since + dt.timedelta(seconds=WEEK))
    assert not is_due(first[0], WEEK, first[0].since + dt.timedelta(seconds=WEEK / 2))

"""Whatever the facts are, a decision never loses what is acknowledged and always leads to an end."""

import datetime as dt
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_kit import VM, make_opening, make_summary

from vmreplica.agent.decide import (
    BASE_AWAITED,
    MAX_WAITING,
    Adopt,
    Capture,
    Continue,
    CycleFacts,
    DiskFacts,
    Fenced,
    Fetch,
    Ship,
    SpoolFacts,
    Tidy,
    Wait,
    decide,
)
from vmreplica.agent.exporting import spacing
from vmreplica.agent.repairs import repair_ranges, repair_texts
from vmreplica.capture.plan import Run, joined
from vmreplica.model.damage import Repair
from vmreplica.model.ids import checkpoint_name, new_point_id, point_instant
from vmreplica.model.point import PointOpening, PointSummary, Position

pytestmark = pytest.mark.main_job

REPLICA = "ab" * 16
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POINTS = tuple(new_point_id(START + dt.timedelta(minutes=n), f"{n:08x}") for n in range(5))
FOREIGN = ("backup-of-somebody", "vmreplica-00000000-20260101T000000Z-00000000")
NAMES = (*(checkpoint_name(REPLICA, point) for point in POINTS), *FOREIGN)
DISKS = {"vda": 1 << 20, "vdb": 2 << 20}


def summary(point: str) -> PointSummary:
    return make_summary(point, DISKS, checkpoint=checkpoint_name(REPLICA, point))


def opening(point: str, parent: str | None, kind: str, epoch: int) -> PointOpening:
    return make_opening(point, DISKS, parent=parent, kind=kind, epoch=epoch, checkpoint=checkpoint_name(REPLICA, point))


@st.composite
def spools(draw: st.DrawFn) -> SpoolFacts | None:
    if not draw(st.booleans()):
        return None
    kind = draw(st.sampled_from(["initial", "delta", "resync"]))
    point = draw(st.sampled_from(POINTS[1:]))
    parent = draw(st.sampled_from(POINTS[: POINTS.index(point)])) if kind == "delta" else None
    return SpoolFacts(
        opening=opening(point, parent, kind, draw(st.integers(0, 2))),
        complete=draw(st.booleans()),
        job_runs=draw(st.booleans()),
    )


@st.composite
def disk_facts(draw: st.DrawFn) -> DiskFacts:
    tracked = draw(st.booleans())
    return DiskFacts(
        size=draw(st.sampled_from([1 << 19, 1 << 20, 2 << 20])),
        tracked=tracked,
        fingerprint_good=draw(st.booleans()),
        trouble=draw(st.none() | st.just("bitmap broken")) if tracked else None,
        unfetchable=draw(st.booleans()),
    )


def repairs() -> st.SearchStrategy[Repair]:
    target, number = st.sampled_from(["vda", "vdx"]), st.integers(0, 30)
    return st.builds(Repair, target=target, first=number, clusters=number.map(lambda n: n + 1))


@st.composite
def facts(draw: st.DrawFn) -> CycleFacts:
    latest = draw(st.none() | st.sampled_from(POINTS).map(summary))
    position = Position(
        vm=VM,
        state=draw(st.sampled_from(["waiting-for-initial", "replicating", "failed-over", "failing-over"])),
        epoch=draw(st.integers(0, 2)),
        latest=latest,
        incoming=None,
        free_bytes=1,
        points=draw(st.sampled_from([0, MAX_WAITING, MAX_WAITING + 1])),
        awaited=draw(st.none() | st.just(latest.point)) if latest is not None else None,
        repairs=draw(st.just(()) | st.lists(repairs(), max_size=2).map(tuple)),
    )
    return CycleFacts(
        replica=REPLICA,
        epoch=draw(st.integers(0, 2)),
        position=position,
        running=draw(st.booleans()),
        at_rest=draw(st.booleans()),
        disks=draw(st.dictionaries(st.sampled_from(["vda", "vdb", "vdc"]), disk_facts(), min_size=1)),
        checkpoints=tuple(draw(st.sets(st.sampled_from(NAMES)))),
        spool=draw(spools()),
    )


@given(facts())
def test_nothing_is_sent_to_a_replica_that_has_moved_on(known: CycleFacts) -> None:
    step, ahead = decide(known), known.position.epoch > known.epoch
    assert isinstance(step, Fenced | Adopt) == ahead
    if ahead:
        assert isinstance(step, Adopt) == (known.position.state in {"waiting-for-initial", "replicating"})


@given(facts())
def test_foreign_checkpoints_are_never_touched(known: CycleFacts) -> None:
    step = decide(known)
    if isinstance(step, Tidy):
        assert not set(step.checkpoints) & set(FOREIGN)


@given(facts())
def test_the_base_of_the_replicas_latest_point_is_kept_while_any_disk_needs_it(known: CycleFacts) -> None:
    step = decide(known)
    latest = known.position.latest
    if isinstance(step, Tidy) and latest is not None and latest.checkpoint in step.checkpoints:
        tracked = [disk for disk in known.disks.values() if disk.tracked]
        assert step.discard_spool or all(disk.trouble for disk in tracked)


@given(facts())
def test_a_point_on_a_parent_builds_on_the_latest_one_and_on_its_own_checkpoint(known: CycleFacts) -> None:
    step = decide(known)
    if isinstance(step, Capture) and step.parent is not None:
        latest = known.position.latest
        assert latest is not None
        assert step.parent == latest.point
        assert set(step.modes) == set(known.disks)
        if "delta" in step.modes.values():
            assert step.base == latest.checkpoint
            assert step.base in known.checkpoints


@given(facts())
def test_each_disk_goes_the_cheapest_way_that_is_sound(known: CycleFacts) -> None:
    step = decide(known)
    if not isinstance(step, Capture) or step.parent is None or known.position.latest is None:
        return
    had = {disk.target: disk.size for disk in known.position.latest.disks}
    for target, mode in step.modes.items():
        disk = known.disks[target]
        if mode == "whole":
            assert disk.size < had.get(target, disk.size + 1) or not disk.fingerprint_good
        else:
            assert disk.fingerprint_good
        if mode == "delta":
            assert disk.tracked
            assert disk.trouble is None


@given(facts())
def test_a_doubtful_fingerprint_is_fetched_before_a_disk_is_read_whole(known: CycleFacts) -> None:
    step = decide(known)
    if isinstance(step, Fetch):
        assert all(not known.disks[target].fingerprint_good for target in step.targets)
        assert not any(known.disks[target].unfetchable for target in step.targets)
    elif isinstance(step, Capture) and step.parent is not None and known.position.latest is not None:
        sizes = {disk.target: disk.size for disk in known.position.latest.disks}
        kept = [disk for target, disk in known.disks.items() if target in sizes and disk.size >= sizes[target]]
        assert all(disk.fingerprint_good or disk.unfetchable for disk in kept)


@given(facts())
def test_a_spooled_point_is_sent_only_onto_the_point_it_follows(known: CycleFacts) -> None:
    step = decide(known)
    if isinstance(step, Ship | Continue):
        assert known.spool is not None
        latest = known.position.latest
        assert known.spool.opening.parent == (latest.point if latest and known.spool.opening.parent else None)
        assert known.spool.opening.epoch == known.epoch


@given(facts())
def test_tidying_comes_to_an_end(known: CycleFacts) -> None:
    for _ in range(3):
        step = decide(known)
        if not isinstance(step, Tidy):
            return
        known = CycleFacts(
            replica=known.replica,
            epoch=known.epoch,
            position=known.position,
            running=known.running,
            at_rest=known.at_rest,
            disks=known.disks,
            checkpoints=tuple(name for name in known.checkpoints if name not in step.checkpoints),
            spool=None if step.discard_spool else known.spool,
        )
    assert not isinstance(decide(known), Tidy)


@given(facts())
def test_only_a_vm_at_rest_waits_and_not_while_something_has_to_be_brought_again(known: CycleFacts) -> None:
    if known.spool is None:
        wanted = any(repair.target in known.disks for repair in known.position.repairs)
        resting = known.at_rest and not known.running and not wanted
        step = decide(known)
        if step == Wait(reason=BASE_AWAITED):
            return
        assert isinstance(step, Wait) <= resting
        assert isinstance(step, Capture) <= (not resting)


@given(facts())
def test_a_disk_that_became_smaller_is_sent_whole_and_alone(known: CycleFacts) -> None:
    step, latest = decide(known), known.position.latest
    if not isinstance(step, Capture) or step.parent is None or latest is None:
        return
    sizes = {disk.target: disk.size for disk in latest.disks}
    for target, mode in step.modes.items():
        disk = known.disks[target]
        if disk.size < sizes.get(target, 0):
            assert mode == "whole"
            assert f"{target}: it became smaller" in step.reason
        elif disk.fingerprint_good and target in sizes:
            assert mode != "whole"


@given(facts())
def test_no_more_points_than_agreed_wait_for_an_export(known: CycleFacts) -> None:
    if known.position.awaited is not None and known.position.points > MAX_WAITING:
        assert not isinstance(decide(known), Capture)


@given(st.integers(5, 86400), st.integers(0, 30 * 86400))
def test_cycles_become_rarer_while_an_export_travels_and_never_more_frequent(interval: int, age: int) -> None:
    base = POINTS[0]
    waits = spacing(interval, base, point_instant(base) + dt.timedelta(seconds=age))
    assert waits == max(interval, age / 8)
    assert spacing(interval, None, dt.datetime.now(dt.UTC)) == interval


@given(st.lists(repairs(), max_size=6))
def test_what_is_brought_again_is_what_was_asked_for_in_order_and_apart(asked: list[Repair]) -> None:
    found = repair_ranges(asked, {"vda"})
    assert set(found) <= {"vda"}
    ranges = found.get("vda", ())
    wanted = {
        c for repair in asked if repair.target == "vda" for c in range(repair.first, repair.first + repair.clusters)
    }
    assert {c for first, end in ranges for c in range(first, end)} == wanted
    assert all(end < later for (_, end), (later, _) in itertools.pairwise(ranges))
    told = repair_texts(found)
    assert len(told) == len(found)
    assert all(f" {len(wanted)} damaged" in text for text in told)


@given(st.sets(st.integers(0, 40)), st.lists(repairs(), max_size=4), st.integers(0, 40))
def test_changed_clusters_and_those_brought_again_are_read_once_each_in_order(
    changed: set[int], asked: list[Repair], first: int
) -> None:
    must = repair_ranges(asked, {"vda"}).get("vda", ())
    runs = [Run(cluster, 1, wanted=True) for cluster in sorted(changed) if cluster >= first]
    found = [cluster for run in joined(runs, must, first) for cluster in range(run.first, run.end)]
    more = {cluster for low, high in must for cluster in range(low, high)}
    assert found == sorted(cluster for cluster in changed | more if cluster >= first)

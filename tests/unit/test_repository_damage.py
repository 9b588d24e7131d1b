"""Known damage: which points read it, what may be merged, what the primary is asked for."""

import datetime as dt
from pathlib import Path

import pytest
from point_kit import VM
from repository_kit import START, ZERO, Primary, check_all, fill, new_replica, noise, open_repository, with_blocks

from vmreplica.failover.sound import require_sound
from vmreplica.model.damage import MAX_DAMAGES, MAX_REPAIRS, Damage, DamageKind, Repair
from vmreplica.model.errors import Corrupt
from vmreplica.model.keep import Keep
from vmreplica.model.units import CLUSTER
from vmreplica.repository import Replica
from vmreplica.repository.coverage import without
from vmreplica.repository.layout import Layout

pytestmark = pytest.mark.points

NOW = START + dt.timedelta(days=1)


def _damage(point: str, cluster: int, clusters: int = 1, what: DamageKind = "data") -> Damage:
    return Damage(
        point=point,
        disk="vda",
        guest_offset=cluster * CLUSTER,
        length=clusters * CLUSTER,
        file="vda.qcow2",
        what=what,
        text="a test says so",
    )


def _history(tmp_path: Path) -> tuple[Replica, Primary, list[str]]:
    """Five points: cluster 1 in all, 2 in the first and third, patched in the fourth, 3 zeroed in the last."""
    replica, primary = new_replica(tmp_path), Primary(patches=True)
    primary.send(replica, {"vda": {n: noise(n) for n in range(1, 6)}})
    primary.send(replica, {"vda": {1: noise(11)}})
    primary.send(replica, {"vda": {1: noise(21), 2: noise(22)}})
    primary.send(replica, {"vda": {1: noise(31), 2: with_blocks(noise(22), 1)}})
    primary.send(replica, {"vda": {1: noise(41), 3: ZERO}})
    return replica, primary, sorted(primary.expected)


def test_a_point_is_quarantined_when_it_reads_what_is_damaged_below_it(tmp_path: Path) -> None:
    replica, _primary, points = _history(tmp_path)
    damages = replica.damages
    damages.record(points[0], [_damage(points[0], 1)], NOW)
    assert damages.quarantined() == {points[0]}, "the others have a newer cluster of their own"
    assert not replica.points()[0].damaged
    damages.record(points[0], [_damage(points[0], 2)], NOW)
    assert damages.quarantined() == set(points[:2])
    damages.record(points[0], [_damage(points[0], 3)], NOW)
    assert damages.quarantined() == set(points[:4])
    damages.record(points[0], [_damage(points[0], 4)], NOW)
    assert damages.quarantined() == set(points)
    assert damages.newest_good() is None
    assert f"{4 * CLUSTER}" in replica.points()[0].damaged[0]
    again = open_repository(tmp_path).replica(VM)
    assert again.damages.quarantined() == set(points), "it is written down"
    again.damages.record(points[0], [], NOW)
    assert not open_repository(tmp_path).replica(VM).damages.any()


def test_a_patch_hides_the_blocks_it_has_and_no_others(tmp_path: Path) -> None:
    replica, _primary, points = _history(tmp_path)
    replica.damages.record(points[2], [_damage(points[2], 2)], NOW)
    assert replica.damages.quarantined() == set(points[2:])
    below = sum(damage.length for damage in replica.damages.of(points[3]))
    assert 0 < below < CLUSTER
    assert replica.damages.of(points[3]) == replica.damages.of(points[4])
    assert replica.damages.wanted() == (Repair(target="vda", first=2, clusters=1),), "whole clusters are asked for"
    assert replica.position().repairs == replica.damages.wanted()
    assert replica.damages.newest_good() == points[1]
    assert replica.damages.kept() == {points[1]}


def test_a_newer_point_that_brings_the_cluster_ends_the_quarantine_of_the_newest(tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    replica.damages.record(points[0], [_damage(points[0], 4, 2)], NOW)
    primary.send(replica, {"vda": {4: noise(4), 5: ZERO}})
    assert replica.damages.quarantined() == set(points)
    assert replica.damages.newest_good() == primary.latest
    assert not replica.damages.wanted()
    assert not replica.damages.kept()


def test_only_what_a_newer_whole_cluster_supersedes_may_be_merged(tmp_path: Path) -> None:
    replica, primary, points = _history(tmp_path)
    may = replica.damages.may_merge
    assert may(points)
    replica.damages.record(points[0], [_damage(points[0], 2)], NOW)
    assert not may(points[:2])
    assert may(points[:3])
    replica.damages.record(points[0], [], NOW)
    replica.damages.record(points[2], [_damage(points[2], 2)], NOW)
    assert not may(points[2:]), "a patch needs what is below it"
    assert not may(points[1:3]), "it would be copied"
    assert may(points[:2])
    primary.send(replica, {"vda": {2: noise(2)}})
    assert may([*points[2:], str(primary.latest)])
    for what in ("table", "header", "index", "refcounts"):
        replica.damages.record(points[2], [_damage(points[2], 2, what=what)], NOW)
        assert not may([*points[2:], str(primary.latest)]), what


def test_damage_that_no_reader_meets_quarantines_nothing(tmp_path: Path) -> None:
    replica, _primary, points = _history(tmp_path)
    replica.damages.record(points[1], [_damage(points[1], 0, 0, "index")], NOW)
    assert not replica.damages.quarantined()
    assert not replica.damages.may_merge(points[1:3])
    assert "not concerned" in replica.position().complaints[0]
    definition = Damage(point=points[1], file="definition.xml", what="definition", text="other bytes")
    replica.damages.record(points[1], [definition], NOW)
    assert replica.damages.quarantined() == {points[1]}


def test_a_list_of_damage_that_is_damaged_itself_damages_the_whole_point(tmp_path: Path) -> None:
    replica, _primary, points = _history(tmp_path)
    replica.damages.record(points[4], [_damage(points[4], 3)], NOW)
    (replica.dir / "points" / points[4] / "damage.json").write_text("{")
    assert open_repository(tmp_path).replica(VM).damages.quarantined() == {points[4]}


def test_lists_and_wishes_are_bounded(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary({"vda": 8192 * CLUSTER})
    primary.send(replica, {"vda": {0: noise(0)}})
    point = str(primary.latest)
    replica.damages.record(point, [_damage(point, n) for n in range(0, 8000, 2)], NOW)
    own = replica.damages.own(point)
    assert len(own) == MAX_DAMAGES + 1
    assert own[-1].guest_offset + own[-1].length == 7999 * CLUSTER
    assert len(replica.damages.wanted()) == MAX_REPAIRS
    assert len(replica.points()[0].damaged) < 30


def test_a_damaged_point_is_refused_and_a_good_one_offered(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    fill(replica, primary, 3)
    points = sorted(primary.expected)
    replica.damages.record(points[2], [_damage(points[2], 7)], NOW)
    with pytest.raises(Corrupt) as caught:
        require_sound("web", replica.points(), points[2], even_damaged=False)
    assert caught.value.code == "point-damaged"
    assert f"disk vda from byte {7 * CLUSTER}" in caught.value.message
    assert f"--point {points[1]}" in caught.value.hint
    assert points[0] in caught.value.hint
    assert "damaged" in require_sound("web", replica.points(), points[2], even_damaged=True)[0]
    assert not require_sound("web", replica.points(), points[1], even_damaged=False)


def test_what_is_covered_is_cut_out_of_stretches() -> None:
    assert without([(0, 10), (20, 30)], [(5, 22), (25, 26)]) == [(0, 5), (22, 25), (26, 30)]
    assert without([(0, 10)], []) == [(0, 10)]
    assert without([(5, 6)], [(0, 10)]) == []


@pytest.mark.parametrize(("keep", "step"), [(1, "commit"), (2, "merge vda")])
def test_damage_that_is_found_while_points_are_merged_keeps_them_apart(tmp_path: Path, keep: int, step: str) -> None:
    replica, primary, points = _history(tmp_path)
    bad = points[0] if keep == 1 else points[1]
    if keep == 2:
        for pin in (points[0], points[3]):
            replica.hold(pin, "a person", "of value", kind="pin")
    replica.update(keep=Keep(last=1))
    steps: list[str] = []

    def found(at: str) -> None:
        steps.append(at)
        if at == step:
            replica.damages.record(bad, [_damage(bad, 1, what="header")], NOW)

    replica.before_fold_step = found
    replica.apply_retention()
    assert step in steps
    assert not {"hide", "place vda"} & set(steps), "nothing was committed"
    assert check_all(replica, primary) == points
    assert replica.damages.own(bad)
    assert not Layout(replica.dir).fold.exists()
    assert not Layout(replica.dir).merge.exists()

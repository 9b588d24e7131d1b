"""Merging points in the middle: every kept point reads right at every instant, whatever stops it."""

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from machine_kit import leave_free, small_file_system
from point_kit import VM as THE_VM
from repository_kit import (
    SIZE,
    START,
    Killed,
    Primary,
    check_all,
    fill,
    kill_at,
    new_replica,
    noise,
    open_repository,
)
from rich.console import Console, RenderableType

from vmreplica.cli.show_points import plan_view
from vmreplica.model.errors import Corrupt, NoSpace
from vmreplica.model.keep import Keep
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.repository import Replica, folding, merging
from vmreplica.repository.layout import Layout, read_shape
from vmreplica.repository.pacing import Pace
from vmreplica.repository.plan_merges import BOUND
from vmreplica.repository.record import MergeRecord

pytestmark = pytest.mark.points

#: The points of these tests are a second apart: all is kept, until the rules are these.
ALL = Keep(last=1000)
#: Only the newest one and what is pinned.
FEW = Keep(last=1)


def pinned(store: Path, points: int, *pins: int) -> tuple[Replica, Primary]:
    """A replica with points of two disks, some of them pinned, and all others to go."""
    replica, primary = new_replica(store, keep=1000), Primary({"vda": SIZE, "vdb": 10 * CLUSTER + 512}, patches=True)
    fill(replica, primary, points)
    listed = sorted(primary.expected)
    for pin in pins:
        replica.hold(listed[pin], "a person", "of value", kind="pin")
    replica.update(keep=FEW)
    return replica, primary


def parents(replica: Replica) -> dict[str, str | None]:
    """What each point stands on."""
    return {manifest.point: manifest.parent for manifest in replica.manifests()}


def test_points_between_two_that_stay_are_merged_into_the_later_one(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 9, 0, 5, 8)
    listed = sorted(primary.expected)
    before = sum(point.stored_bytes for point in replica.points())
    assert replica.apply_retention() == 4
    assert check_all(replica, primary) == [listed[0], *listed[5:]], "what the newest would take in waits"
    assert parents(replica)[listed[5]] == listed[0]
    assert replica.point(listed[5]).merged
    assert replica.retained.gone == 4
    assert replica.retained.freed == before - sum(point.stored_bytes for point in replica.points())
    again = open_repository(tmp_path).replica(THE_VM)
    assert check_all(again, primary) == check_all(replica, primary)
    assert not again.position().complaints


STEPS = [
    "merge vda", "merge vdb", "merge commit", "place vda", "switch image vda", "place vdb", "switch image vdb",
    "merge manifest", "merge end",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_of_a_merge_costs_no_point(step: str, tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 6, 0, 4)
    listed = sorted(primary.expected)
    replica.before_fold_step = kill_at(step)
    with pytest.raises(Killed):
        replica.apply_retention()
    assert check_all(replica, primary) == listed, "whoever looks meanwhile sees readable points"
    again = open_repository(tmp_path).replica(THE_VM)
    assert check_all(again, primary) == listed
    layout = Layout(tmp_path / THE_VM)
    assert not layout.merge.exists()
    assert not layout.merging(listed[4]).exists()
    again.apply_retention()
    assert check_all(again, primary) == [listed[0], listed[4], listed[5]]
    assert not again.position().complaints


@pytest.mark.parametrize("step", ["merge vdb", "switch image vdb", "merge manifest"])
def test_a_process_that_is_killed_in_a_merge_costs_no_point(step: str, tmp_path: Path) -> None:
    _replica, primary = pinned(tmp_path, 6, 0, 4)
    listed = sorted(primary.expected)
    program = [sys.executable, str(Path(__file__).with_name("merge_killed.py")), str(tmp_path), THE_VM, step]
    paths = os.pathsep.join(sys.path)
    ran = subprocess.run(program, env={**os.environ, "PYTHONPATH": paths}, timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL
    again = open_repository(tmp_path).replica(THE_VM)
    assert check_all(again, primary) == listed
    again.apply_retention()
    assert check_all(again, primary) == [listed[0], listed[4], listed[5]]


@pytest.mark.parametrize("step", ["reparent", "place vda", "merge manifest", "merge end"])
def test_a_crash_while_a_point_gets_another_parent_costs_no_point(step: str, tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 6, 0, 2, 4)
    listed = sorted(primary.expected)
    shortcut(replica, listed, 4, 0)
    assert parents(replica)[listed[4]] == listed[0]
    act = folding.Guidance(before=kill_at(step))
    with pytest.raises(Killed):
        merging.reparent(replica._layout, replica.point(listed[4]), listed[2], act)
    again = open_repository(tmp_path).replica(THE_VM)
    assert check_all(again, primary) == listed
    assert parents(again)[listed[4]] == (listed[0] if step == "reparent" else listed[2])
    again.apply_retention()
    assert check_all(again, primary) == [listed[0], listed[2], listed[4], listed[5]]


def shortcut(replica: Replica, listed: list[str], point: int, onto: int) -> None:
    """Rebase a point onto one before its parent."""
    manifest = replica.point(listed[point])
    done = merging.rebase(replica._layout, manifest, listed[onto], listed[onto + 1 : point], folding.Guidance())
    replica._shelf.put(listed[point], done)


def test_a_merge_that_was_interrupted_twice_is_still_finished(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 6, 0, 4)
    listed = sorted(primary.expected)
    replica.before_fold_step = kill_at("switch image vdb")
    with pytest.raises(Killed):
        replica.apply_retention()
    layout = Layout(tmp_path / THE_VM)
    record = read_shape(layout.merge, MergeRecord)
    with pytest.raises(Killed):
        merging._roll_forward(layout, record, kill_at("merge manifest"))
    again = open_repository(tmp_path).replica(THE_VM)
    assert check_all(again, primary) == listed
    assert parents(again)[listed[4]] == listed[0]


def test_hundreds_of_points_are_kept_by_short_chains(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1000), Primary(patches=True)
    deepest = 0
    for turn in range(90):
        fill(replica, primary, 1, seed=turn)
        replica.apply_retention()
        deepest = max(deepest, replica.merge_plan().chain_depth)
    assert len(replica.points()) == 90
    assert 20 < deepest <= BOUND
    listed = sorted(primary.expected)
    assert check_all(replica, primary, only=listed[::7]) == listed
    replica.update(keep=Keep(last=3))
    replica.apply_retention()
    assert check_all(replica, primary)[-3:] == listed[-3:]


def test_space_for_less_than_one_whole_image_is_complained_of(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=5), Primary(patches=True)
    primary.send(replica, {"vda": {number: noise(number) for number in range(2 * MiB // CLUSTER)}})
    fill(replica, primary, 2)
    replica.update(keep=Keep(last=5, space=4 * MiB))
    assert not replica.position().complaints
    replica.update(keep=Keep(last=5, space=MiB))
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-1:]
    (complaint,) = replica.position().complaints
    assert "leaves room for the newest recovery point only" in complaint


def test_the_plan_says_what_is_done_and_what_waits_and_why(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 9, 0, 5)
    listed = sorted(primary.expected)
    plan = replica.merge_plan()
    assert [(step.act, step.point) for step in plan.steps] == [
        ("merge", listed[5]),
        *(("delete", point) for point in reversed(listed[1:5])),
    ]
    assert set(plan.waiting) == set(listed[6:8])
    assert (plan.chain_depth, plan.bound) == (9, BOUND)
    replica.apply_retention()
    assert set(replica.merge_plan().waiting) == set(listed[6:8])
    assert not replica.merge_plan().steps


def test_what_somebody_has_open_is_not_touched_and_a_pin_lets_it_be_merged(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 7, 0, 5)
    listed = sorted(primary.expected)
    hold = replica.hold(listed[3], "a mount", "a file is looked for")
    before = {point: replica.image(point, "vda").stat().st_ino for point in listed[:4]}
    replica.apply_retention()
    assert {point: replica.image(point, "vda").stat().st_ino for point in listed[:4]} == before
    assert "open" in replica.merge_plan().waiting[listed[2]]
    replica.release(hold)
    replica.apply_retention()
    assert check_all(replica, primary) == [listed[0], listed[5], listed[6]]


def test_a_hold_stops_a_merge_under_way_and_nothing_has_changed(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 6, 0, 4)
    listed = sorted(primary.expected)
    with ThreadPoolExecutor(1) as pool:
        holds: list[Future[str]] = []

        def someone_comes(step: str) -> None:
            if step == "merge vdb" and not holds:
                holds.append(pool.submit(replica.hold, listed[2], "failover", "it runs"))
                while not replica._stop_fold.is_set():
                    time.sleep(0.001)

        replica.before_fold_step = someone_comes
        assert replica.apply_retention() == 0
        replica.release(holds[0].result(timeout=10))
    assert check_all(replica, primary) == listed
    assert not Layout(tmp_path / THE_VM).merge.exists()
    assert replica.apply_retention() == 3


def test_points_go_on_coming_while_others_are_merged(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 6, 0, 4)
    listed = sorted(primary.expected)

    def one_comes(step: str) -> None:
        if step in {"merge vda", "switch image vdb"}:
            fill(replica, primary, 1, seed=len(primary.expected))

    replica.before_fold_step = one_comes
    assert replica.apply_retention() == 3
    listed = sorted(primary.expected)
    assert check_all(replica, primary) == [listed[0], *listed[4:]]
    assert len(listed) == 8


def test_a_disk_that_came_late_stands_alone_and_one_that_grew_keeps_its_end(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1000), Primary({"vda": 5 * CLUSTER + 512})
    primary.send(replica, {"vda": {0: noise(1)}})
    primary.send(replica, {"vda": {1: noise(2)}})
    primary.sizes["vda"] = 9 * CLUSTER
    primary.sizes["vdb"], primary.disks["vdb"] = SIZE, {}
    primary.send(replica, {"vda": {8: noise(3)}, "vdb": {3: noise(4)}})
    primary.send(replica, {"vdb": {3: bytes(CLUSTER), 4: noise(5)}})
    fill(replica, primary, 2)
    listed = sorted(primary.expected)
    for pin in (0, 4):
        replica.hold(listed[pin], "a person", "of value", kind="pin")
    replica.update(keep=FEW)
    replica.apply_retention()
    assert check_all(replica, primary) == [listed[0], *listed[4:]]
    replica.update(keep=ALL)
    fill(replica, primary, 1, seed=9)
    for hold in list(replica._holds._holds):
        replica.release(hold)
    replica.update(keep=FEW)
    replica.apply_retention()
    assert check_all(replica, primary) == [primary.latest]


def test_a_damaged_index_fails_the_merge_and_costs_nothing(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 6, 0, 4)
    listed = sorted(primary.expected)
    index = replica.image(listed[2], "vda").with_suffix(".index")
    content = bytearray(index.read_bytes())
    content[200] ^= 1
    index.write_bytes(content)
    with pytest.raises(Corrupt):
        replica.apply_retention()
    assert check_all(replica, primary) == listed
    assert any("not folded" in text for text in replica.position().complaints)
    assert not Layout(tmp_path / THE_VM).merge.exists()


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 64) as mounted:
        yield mounted


@pytest.mark.parametrize("left", [0, 64 << 10, 2 << 20, 5 << 20])
def test_a_merge_during_which_the_store_fills_up_costs_nothing_and_is_done_later(
    left: int, small_fs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the room before is taken out: something else fills the store just after it."""
    replica, primary = new_replica(small_fs, keep=1000), Primary({"vda": 512 * CLUSTER})
    for turn in range(5):
        primary.send(replica, {"vda": {n: noise(1000 * turn + n) for n in range(turn * 30, turn * 30 + 30)}})
    listed = sorted(primary.expected)
    for pin in (0, 3):
        replica.hold(listed[pin], "a person", "of value", kind="pin")
    replica.update(keep=FEW)
    monkeypatch.setattr(merging, "require_free", lambda _path, _needed, _what: None)
    leave_free(small_fs / "ballast", left)
    with pytest.raises(NoSpace):
        replica.apply_retention()
    assert any("not folded" in text for text in replica.position().complaints)
    (small_fs / "ballast").unlink()
    assert check_all(replica, primary) == listed
    assert replica.apply_retention() == 2
    assert check_all(replica, primary) == [listed[0], *listed[3:]]
    assert not replica.position().complaints


def test_what_is_written_keeps_to_the_limit_and_a_stop_ends_the_wait() -> None:
    stopped: list[bool] = []
    pace = Pace(8 * MiB, lambda: bool(stopped))
    began = time.monotonic()
    for _ in range(12):
        pace(1 * MiB)
    assert 0.9 < time.monotonic() - began < 5
    stopped.append(True)
    began = time.monotonic()
    pace(800 * MiB)
    assert time.monotonic() - began < 1


@pytest.mark.slow
def test_the_default_rules_over_some_days_keep_what_they_promise(tmp_path: Path) -> None:
    """One point each twenty minutes for two days and a half; the clock is that of the points."""
    replica, primary = new_replica(tmp_path, keep=1000), Primary({"vda": SIZE}, patches=True, spacing=1200)
    replica.update(keep=Keep(within=3600, hourly=24, daily=7))
    replica._clock = lambda: START + dt.timedelta(seconds=1200 * primary.count)
    for turn in range(180):
        fill(replica, primary, 1, seed=turn)
        replica.apply_retention()
        assert replica.merge_plan().chain_depth <= BOUND
    kept = {point for point, verdict in replica.verdicts().items() if verdict.keep}
    assert len(kept) >= 3 + 23 + 1
    check_all(replica, primary)


def test_the_shown_plan_says_what_is_done_with_the_images(tmp_path: Path) -> None:
    replica, primary = pinned(tmp_path, 9, 0, 5)
    listed = sorted(primary.expected)
    shown = plain(plan_view(replica.listing().model_copy(update={"merges": replica.merge_plan()})))
    assert f"{listed[5]}: merged with the 4 before it, up to" in shown
    assert f"{listed[1]}: deleted, which frees" in shown
    assert f"{listed[8]} stands on it: merged with others when that writes least" in shown
    assert "The longest chain has 9 images; more than 30 are merged." in shown


def plain(view: RenderableType) -> str:
    """What is shown, without colours, in one line a row."""
    console = Console(width=400, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()

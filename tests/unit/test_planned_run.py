"""Runs of planned failovers on the primary: what they leave behind, and when they start the VM here again."""

import datetime as dt
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planned_kit import HOST, POINT, VM, Side

from vmreplica.agent.guard import moving
from vmreplica.agent.watchman import Watchman
from vmreplica.model.errors import Conflict, Unreachable
from vmreplica.model.policy import Planned, Policy
from vmreplica.model.states import State
from vmreplica.peer.planned import PlannedWish

pytestmark = pytest.mark.failover

PREPARED = Planned(stage="prepared", was_running=True, point=POINT)
PREPARING = Planned(stage="preparing", was_running=True)


def side(base: Path, planned: Planned | None, *, on: bool = False) -> Side:
    """Give a primary in the middle of a planned failover."""
    made = Side(base, Policy(replica=HOST, planned=planned), on=on)
    if planned is not None and planned.stage == "prepared":
        made.fence.forbid(VM, moving("web"))
    return made


def may_start(made: Side) -> bool:
    return made.starts.verdict(VM, "web", made.libvirt.policy(VM)).allowed


def take_failover_back(made: Side) -> None:
    made.replica.state = State.REPLICATING


def test_a_vm_that_was_failed_over_from_another_point_starts_here_once_that_is_taken_back(tmp_path: Path) -> None:
    made = side(tmp_path, PREPARED)
    made.replica.state, made.replica.epoch = State.FAILED_OVER, 1
    made.replica.refuses = Conflict("failed-over-from-another-point", "it runs there from an older point")
    with pytest.raises(Conflict, match="older point"):
        made.run().settle("self")
    assert made.libvirt.known.planned is None
    assert made.guard.fenced(VM), "it is known to live there"
    assert not may_start(made)
    take_failover_back(made)
    assert may_start(made)


def test_a_vm_that_runs_on_both_sides_after_a_lost_answer_is_known_to_do_so(tmp_path: Path) -> None:
    made = side(tmp_path, PREPARED, on=True)
    made.replica.state, made.replica.epoch = State.FAILED_OVER, 1
    made.run().settle("self")
    assert (made.libvirt.known.planned, made.rel.fenced, made.guard.fenced(VM)) == (None, True, True)


def test_an_agent_killed_while_it_gave_a_planned_failover_up_leaves_no_fence_for_ever(tmp_path: Path) -> None:
    made = side(tmp_path, PREPARED)
    made.replica.state, made.replica.epoch = State.FAILED_OVER, 1
    watchman = _watchman(made)
    brief: Any = SimpleNamespace(vm=VM, name="web", active=True)
    watchman._learn({VM: made.libvirt.known}, {VM: brief})
    assert not may_start(made)
    assert not made.guard.fenced(VM), "a planned failover that is under way keeps its fence"
    made.libvirt.known = Policy(replica=HOST)
    watchman._learn({VM: made.libvirt.known}, {VM: brief})
    assert made.guard.fenced(VM)
    take_failover_back(made)
    assert may_start(made)


def test_a_fence_that_nobody_can_read_is_not_taken_for_one_of_a_planned_failover(tmp_path: Path) -> None:
    made = side(tmp_path, None)
    (made.fence.directory / f"{VM}.json").write_text("{")
    brief: Any = SimpleNamespace(vm=VM, name="web", active=False)
    _watchman(made)._learn({VM: made.libvirt.known}, {VM: brief})
    assert not may_start(made)


def _watchman(made: Side) -> Watchman:
    parts: Any = {"clients": made.replica, "hypervisor": made.libvirt, "runner": made.runner}
    return Watchman(fencing=made.starts, guard=made.guard, autostart=None, boots=None, **parts)  # type: ignore[arg-type]


def test_what_is_started_here_again_is_told_to_a_failover_that_begins_there(tmp_path: Path) -> None:
    made, told = side(tmp_path, PREPARING), []
    made.before = lambda step: told.append((step, made.starts.starting(VM)))
    made.run().settle("self")
    assert (made.libvirt.starts, made.libvirt.known.planned) == (1, None)
    assert ("undone", True) in told


def test_a_failover_that_began_there_meanwhile_keeps_it_from_being_started_here(tmp_path: Path) -> None:
    made = side(tmp_path, PREPARING)

    def fail_over() -> None:
        made.replica.state, made.replica.epoch = State.FAILED_OVER, 1

    made.replica.asked = fail_over
    made.run().settle("self")
    assert (made.libvirt.starts, made.starts.starting(VM)) == (0, False)
    assert made.guard.fenced(VM)


def test_a_replica_that_falls_silent_before_the_start_is_asked_first(tmp_path: Path) -> None:
    made = side(tmp_path, PREPARING)

    def fall_silent() -> None:
        made.replica.silent = Unreachable("peer-unreachable", "no route")

    made.replica.asked = fall_silent
    with pytest.raises(Unreachable, match="does not answer"):
        made.run().settle("self")
    assert (made.libvirt.starts, made.libvirt.known.planned) == (0, PREPARING)


def asked(seconds: float) -> Planned:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return Planned(stage="preparing", was_running=True, asked_until=until)


@pytest.mark.parametrize("wish", ["back", "self"])
def test_a_guest_that_shuts_down_while_it_is_taken_back_is_started_again(tmp_path: Path, wish: Any) -> None:
    made = side(tmp_path, asked(60), on=True)
    late = threading.Timer(1.5, lambda: setattr(made.libvirt, "on", False))
    late.start()
    made.run().settle(wish)
    late.join()
    assert (made.libvirt.on, made.libvirt.starts, made.libvirt.known.planned) == (True, 1, None)


def test_a_guest_that_heard_nothing_is_waited_for_no_longer_than_it_was_given(tmp_path: Path) -> None:
    made = side(tmp_path, asked(1), on=True)
    run = made.run()
    run.settle("back")
    assert (run.account.may_go_off, made.libvirt.starts, made.libvirt.known.planned) == (True, 0, None)


def test_a_wait_for_a_guest_that_is_ended_is_gone_on_with_later(tmp_path: Path) -> None:
    made = side(tmp_path, asked(60), on=True)
    made.halt.set()
    with pytest.raises(Conflict, match="was stopped"):
        made.run().settle("self")
    assert made.libvirt.known.planned is not None


def test_that_a_guest_is_asked_is_written_down_before_and_forgotten_once_it_is_off(tmp_path: Path) -> None:
    made = side(tmp_path, PREPARING, on=True)
    run, noted = made.run(PlannedWish(patience=5)), []

    def ring(_vm: str, _bell: str) -> None:
        noted.append(made.libvirt.known.planned)
        made.libvirt.on = False

    power = SimpleNamespace(active=True, awake=True, agent=True, button=True)
    switch = SimpleNamespace(look=lambda _vm: power, ask=ring)
    vars(made.libvirt).update(power_switch=lambda: switch, watch=lambda _seen: lambda: None)
    run._shut_down()
    assert [planned is not None and planned.asked_until is not None for planned in noted] == [True]
    assert made.libvirt.known.planned == PREPARING

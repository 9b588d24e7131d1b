"""Starts of protected VMs: what replicas say, what is remembered, and what people read."""

from pathlib import Path

import pytest
from api_kit import SmallAgent, serving
from cli_kit import Program

from vmreplica.agent.boots import Boots, this_boot
from vmreplica.agent.guard import Guard
from vmreplica.agent.journal import Journal
from vmreplica.agent.relationship import Relationship
from vmreplica.cli.client import AgentClient
from vmreplica.hypervisor.fence import Fence
from vmreplica.model.errors import BadRequest
from vmreplica.model.health import Facts, Level, judge
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.start import StartQuestion
from vmreplica.model.states import State
from vmreplica.peer.book import PeerBook

pytestmark = pytest.mark.failover

VM, OTHER = "4dea22b3-1d52-4dc8-8c9c-9bc0bb4a1b2c", "4dea22b3-1d52-4dc8-8c9c-9bc0bb4a1b2d"
HOST = "ab" * 16


def position(state: State, epoch: int = 0) -> Position:
    return Position(vm=VM, state=state, epoch=epoch, latest=None, incoming=None, free_bytes=0)


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(Fence(tmp_path / "fence"), PeerBook(tmp_path / "peers.json"), Journal(tmp_path / "journal.db"))


def test_a_failover_is_remembered_until_the_replica_says_that_it_was_taken_back(guard: Guard) -> None:
    assert not guard.saw(VM, "web", Policy(replica=HOST), position(State.REPLICATING))
    assert guard.saw(VM, "web", Policy(replica=HOST), position(State.FAILED_OVER, 1))
    assert guard.fenced(VM)
    assert "web was failed over to" in (guard.fence.reason(VM) or "")
    assert not guard.saw(VM, "web", Policy(replica=HOST), position(State.REPLICATING, 1))
    assert guard.fence.find(VM) is None


def test_a_fence_that_a_command_made_is_not_touched_by_what_replicas_say(guard: Guard) -> None:
    guard.fence.forbid(VM, "a planned failover has handed it over")
    for state in (State.REPLICATING, State.FAILED_OVER):
        assert not guard.saw(VM, "web", Policy(replica=HOST), position(state, 1))
        assert guard.fence.reason(VM) == "a planned failover has handed it over"
    assert not guard.fenced(VM)


def test_what_waits_to_be_started_is_kept_within_a_boot_and_asked_anew_after_it(tmp_path: Path) -> None:
    file = tmp_path / "boot.json"
    assert Boots(file, "1").waiting() == frozenset(), "who begins to look on a running host starts nothing"
    assert Boots(file, "2").waiting() is None
    Boots(file, "2").wait_for({VM, OTHER})
    assert Boots(file, "2").waiting() == frozenset({VM, OTHER})
    Boots(file, "2").wait_for({OTHER})
    assert Boots(file, "2").waiting() == frozenset({OTHER})
    assert Boots(file, "3").waiting() is None
    assert this_boot() == this_boot()


def test_a_relationship_that_is_freed_has_a_cycle_due_and_runs_twice_only_while_it_is_fenced() -> None:
    rel = Relationship(vm=VM, name="web", policy=Policy(replica=HOST), due=100.0)
    rel.fence(fenced=True, runs=True, clock=5.0)
    assert (rel.state(), rel.runs_stale, rel.due) == (State.FENCED, True, 100.0)
    rel.fence(fenced=True, runs=None, clock=6.0)
    assert rel.runs_stale
    rel.fence(fenced=False, runs=True, clock=7.0)
    assert (rel.state(), rel.runs_stale, rel.due) == (State.READY, False, 7.0)


def test_a_vm_that_runs_twice_and_one_that_waits_for_its_replica_are_critical() -> None:
    twice = judge(Facts(state=State.FENCED, interval=300, point_age=None, runs_stale=True))
    assert {reason.code for reason in twice.reasons} == {"failed-over-elsewhere", "runs-twice"}
    waits = judge(Facts(state=State.REPLICATING, interval=300, point_age=1.0, vm_off=True, start_waits="b is silent"))
    assert {reason.code for reason in waits.reasons} == {"start-waits", "vm-off"}
    assert (twice.level, waits.level) == (Level.CRITICAL, Level.CRITICAL)


@pytest.fixture
def agent() -> SmallAgent:
    return SmallAgent()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("start", "web"), 0, "web is started."),
        (("start", "db"), 4, "db lives on beta (start-refused)"),
        (("start", "db", "--dry-run"), 0, "db would not be started: db lives on beta"),
        (("start", "web", "--dry-run"), 0, "web may start"),
        (("start", "db", "--i-am-sure"), 2, "lost on one side"),
        (("start", "db", "--i-am-sure", "--yes"), 0, "db is started on your word."),
        (("autostart", "web"), 0, "web starts with its host, once its replica agrees."),
        (("autostart", "web", "--disable"), 0, "web stays off when its host is started."),
    ],
)
def test_people_are_told_what_a_start_came_to(
    agent: SmallAgent, tmp_path: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    with serving(agent, tmp_path / "agent.sock"):
        ran = Program(tmp_path / "agent.sock")(*args)
    assert ran.code == code
    assert said in ran.out + ran.err


def test_a_vm_that_runs_twice_is_started_only_after_the_question_was_put_without_starting_it(
    agent: SmallAgent, tmp_path: Path
) -> None:
    with serving(agent, tmp_path / "agent.sock"):
        Program(tmp_path / "agent.sock")("start", "db", "--i-am-sure", "--json")
    assert agent.asked == [("start", "db", True, True)]


def test_the_hook_s_question_needs_the_id_of_a_vm(agent: SmallAgent, tmp_path: Path) -> None:
    with serving(agent, tmp_path / "agent.sock"), pytest.raises(BadRequest, match="not the UUID"):
        AgentClient(tmp_path / "agent.sock").send("POST", "/v1/starts/web", StartQuestion(name="web", policy=""))


def test_without_an_agent_the_word_is_named_and_without_a_configuration_it_does_not_help(tmp_path: Path) -> None:
    program = Program(tmp_path / "agent.sock")
    ran = program("start", "web")
    assert (ran.code, "vmreplica start web --i-am-sure" in ran.err) == (8, True)
    ran = program("start", "web", "--i-am-sure", "--config", str(tmp_path / "none.toml"))
    assert (ran.code, "config-unreadable" in ran.err) == (2, True)


def test_the_hook_is_installed_by_a_command_that_says_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / "libvirt").mkdir()
    words = ("install-hook", "--config", str(tmp_path / "none.toml"), "--to", str(tmp_path / "libvirt/hooks/qemu.d"))
    program = Program(tmp_path / "agent.sock")
    first = program(*words)
    assert (first.code, "systemctl reload libvirtd" in first.out) == (0, True)
    assert "up to date" in program(*words).out
    assert program(*words, "--json").document == {
        "path": str(tmp_path / "libvirt/hooks/qemu.d/vmreplica"), "changed": False,
    }  # fmt: skip

"""Application-consistent points of a real guest, and agents in it that hang, lie, or are frozen when ours is killed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_kit import NewBlank, NewGuest, enable, points, reasons, refusal, relation, wait_healthy, wait_reason
from quiesce_kit import agent_answers, ask_agent, database_said, put_liar, put_real, quiesce_now, run_inside

from vmreplica.lab import Guest, GuestSpec, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.points

_LAUNCHER = Path(__file__).with_name("crashing_agent.py")


@pytest.fixture(scope="module")
def booted(session_lab: Lab) -> Iterator[Guest]:
    guest = session_lab.host("a").add_guest(GuestSpec(name="ledger", agent=True, database="sqlite", interval_ms=2000))
    guest.wait_for("database: is new")
    assert quiesce_now(session_lab.host("a"), guest.name)["quiescence"]["failure"] is None
    yield guest
    session_lab.host("a").vmreplica("disable", guest.name, "--delete-copy", "--yes", check=False)
    guest.remove()


@pytest.fixture
def ledger(lab: Lab, booted: Guest) -> Iterator[Guest]:
    """A guest with its agent and a database, protected, which has been quiesced before."""
    assert lab.host("a").up
    yield booted
    assert until(lambda: ask_agent(booted, "guest-fsfreeze-status") == "thawed", 60)


@pytest.fixture
def two_seconds(lab: Lab) -> Iterator[None]:
    """Let the agent freeze guests for two seconds at most."""
    a = lab.host("a")
    config = a.layout.agent_config
    usual = config.read_text()
    a.stop_agent()
    config.write_text(f"{usual}\n[limits]\nfreeze = 2\n")
    a.start_agent()
    yield
    a.stop_agent()
    config.write_text(usual)


def test_a_database_is_whole_and_where_the_hook_stopped_it_after_a_failover_to_the_newest_such_point(
    lab: Lab, ledger: Guest
) -> None:
    a, b = lab.host("a"), lab.host("b")
    went = quiesce_now(a, ledger.name)["quiescence"]
    assert (went["failure"], went["file_systems"]) == (None, 1)
    chosen = points(b, ledger.name)[-1]
    assert chosen["consistency"] == "application"
    assert quiesce_now(a, ledger.name, "off")["quiescence"] is None
    assert points(b, ledger.name)[-1]["consistency"] == "crash"

    plan = b.ask("failover", ledger.name, "--test", "--point", "latest-app", "--dry-run")
    assert plan["point"] == chosen["point"], "an older one, passing over the crash-consistent one"
    copy = b.ask("failover", ledger.name, "--test", "--point", "latest-app")["test"]
    assert copy["point"] == chosen["point"]
    integrity, newest, file, stopped = database_said(b.watch_console(copy["name"], "database: integrity .*\n"))
    assert integrity == "ok"
    assert newest == file == stopped, "database and file are of one instant, with the writer between two transactions"
    b.ask("failover", ledger.name, "--test", "--cancel")


#: How the agent lies, and what is said of it.
_LIES = [
    ("freezes-nothing", "nothing-frozen"),
    ("refuses", "guest-agent-refused"),
    ("thawed-before", "freeze-did-not-hold"),
]
_MORE_LIES = [
    ("counts-nonsense", "guest-agent-refused"),
    ("talks-nonsense", "guest-agent-refused"),
    ("frozen-by-others", "frozen-by-others"),
]


@pytest.mark.parametrize("lies", [_LIES, pytest.param(_MORE_LIES, marks=pytest.mark.slow)], ids=["some", "more"])
def test_an_agent_that_lies_or_refuses_costs_the_consistency_and_never_the_point(
    lab: Lab, ledger: Guest, lies: list[tuple[str, str]]
) -> None:
    a = lab.host("a")
    put_liar(ledger)
    try:
        for how, code in lies:
            ask_agent(ledger, "lab-be", **{"as": how})
            cycle = quiesce_now(a, ledger.name)
            assert (cycle["outcome"], cycle["quiescence"]["code"]) == ("published", code), how
            newest = points(a, ledger.name)[-1]
            assert (newest["point"], newest["consistency"]) == (cycle["point"], "crash"), how
            assert newest["quiesce_failure"] == cycle["quiescence"]["failure"]
            assert cycle["quiescence"]["failure"] in reasons(a, ledger.name)["quiesce-failing"]["text"]
        ask_agent(ledger, "lab-be", **{"as": "honest"})
        assert quiesce_now(a, ledger.name)["quiescence"]["file_systems"] == 3
        assert reasons(a, ledger.name) == {}
        assert "should have been application-consistent" in a.vmreplica("points", ledger.name).stdout
    finally:
        put_real(ledger)


def test_a_guest_that_stays_frozen_is_critical_until_it_is_thawed(lab: Lab, ledger: Guest) -> None:
    a = lab.host("a")
    put_liar(ledger)
    try:
        ask_agent(ledger, "lab-be", **{"as": "stays-frozen"})
        cycle = quiesce_now(a, ledger.name)
        assert (cycle["outcome"], cycle["quiescence"]["code"]) == ("published", "guest-frozen")
        assert wait_reason(a, ledger.name, "guest-frozen")["level"] == "critical"
        assert quiesce_now(a, ledger.name)["quiescence"]["code"] == "guest-frozen", "it is not frozen once more"
        ask_agent(ledger, "lab-be", **{"as": "honest"})
        assert until(lambda: "guest-frozen" not in reasons(a, ledger.name), 60)
        assert _journal_of_frozen(lab) == []
    finally:
        put_real(ledger)


@pytest.mark.slow
@pytest.mark.usefixtures("two_seconds")
def test_an_agent_that_hangs_in_the_freeze_delays_a_point_and_thaws_when_it_wakes_up(lab: Lab, ledger: Guest) -> None:
    a = lab.host("a")
    run_inside(ledger, "echo 12 > /tmp/hook.freeze")
    try:
        cycle = quiesce_now(a, ledger.name)
        assert (cycle["outcome"], cycle["quiescence"]["code"]) == ("published", "guest-agent-silent")
        assert until(lambda: _journal_of_frozen(lab) == [], 60), "thawed after it had frozen late"
        assert ask_agent(ledger, "guest-fsfreeze-status") == "thawed"
    finally:
        run_inside(ledger, "rm /tmp/hook.freeze")
    assert "guest-frozen" not in reasons(a, ledger.name)


@pytest.mark.slow
def test_an_agent_that_hangs_in_the_thaw_is_waited_for_in_the_background(lab: Lab, ledger: Guest) -> None:
    a = lab.host("a")
    run_inside(ledger, "echo 30 > /tmp/hook.thaw")
    try:
        cycle = quiesce_now(a, ledger.name)
        assert (cycle["outcome"], cycle["quiescence"]["code"]) == ("published", "guest-agent-silent")
        assert wait_reason(a, ledger.name, "guest-frozen")["level"] == "critical"
        assert until(lambda: _journal_of_frozen(lab) == [], 90)
    finally:
        run_inside(ledger, "rm /tmp/hook.thaw")
    quiesce_now(a, ledger.name)
    wait_healthy(a, ledger.name)


def test_a_guest_frozen_by_an_agent_that_was_killed_is_thawed_by_the_next_one(lab: Lab, ledger: Guest) -> None:
    a = lab.host("a")
    _start_trapped(lab, "GuestFreezer.thaw:before")
    a.vmreplica("enable", ledger.name, "--to", "b", "--every", "24h", "--app-consistent", "cycles=1", check=False)
    assert until(lambda: a.agent_pid is None, 60), "the trap did not spring"
    assert ask_agent(ledger, "guest-fsfreeze-status") == "frozen"
    assert _journal_of_frozen(lab) == [f"{ledger.uuid}.json"]

    a.start_agent()
    assert until(lambda: ask_agent(ledger, "guest-fsfreeze-status") == "thawed", 30)
    assert until(lambda: _journal_of_frozen(lab) == [], 30)
    assert quiesce_now(a, ledger.name)["quiescence"]["failure"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("two_seconds")
def test_a_guest_is_thawed_in_time_while_the_backup_job_does_not_begin(lab: Lab, ledger: Guest) -> None:
    a = lab.host("a")
    _start_trapped(lab, "Freeze.thaw:hold")
    done = a.ask("enable", ledger.name, "--to", "b", "--every", "24h", "--app-consistent", "cycles=1", "--no-wait")
    assert not done["done"]
    assert until(lambda: "trapped" in (a.layout.dir / "sent").read_text(), 60)
    assert until(lambda: ask_agent(ledger, "guest-fsfreeze-status") == "thawed", 20), "by the watchdog"
    (a.layout.dir / "sent.go").touch()
    assert until(lambda: points(a, ledger.name)[-1]["consistency"] == "crash", 30)
    assert "too long" in points(a, ledger.name)[-1]["quiesce_failure"]
    (a.layout.dir / "sent.go").unlink()


def _journal_of_frozen(lab: Lab) -> list[str]:
    return [path.name for path in (lab.host("a").layout.state_dir / "frozen").iterdir()]


def _start_trapped(lab: Lab, trap: str) -> None:
    a = lab.host("a")
    a.stop_agent()
    sent = a.layout.dir / "sent"
    sent.write_text("")
    a.start_agent(["env", f"VMREPLICA_TRAP={trap}", f"VMREPLICA_SENT={sent}", sys.executable, str(_LAUNCHER)])


def test_a_vm_that_cannot_be_asked_is_not_disturbed_and_its_points_say_why(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    assert quiesce_now(a, vm.name)["quiescence"]["code"] == "vm-paused"
    a.virsh("resume", vm.name)
    enable(a, vm.name, every="24h")
    assert relation(a, vm.name)["app_consistent"] == {"every": None, "cycles": 1}, "enable leaves the rule as it is"
    assert [point["quiesce_failure"] for point in points(b, vm.name)] == [
        f"{vm.name} is paused",
        f"no guest agent is connected in {vm.name}",
    ]
    code, error = refusal(b, "failover", vm.name, "--test", "--point", "latest-app")
    assert (code, error["code"]) == (3, "no-application-point")
    findings = {finding["code"]: finding["text"] for finding in a.ask("doctor", vm.name)["findings"]}
    assert f"no guest agent is connected in {vm.name}" in findings["guest-not-quiesced"]


@pytest.mark.slow
def test_postgresql_in_a_debian_guest_is_whole_after_its_primary_was_lost(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, agent=True, database="postgresql", memory=512)
    guest.wait_for("database: is new", timeout=600)
    assert until(lambda: agent_answers(guest), 120)
    went = quiesce_now(a, guest.name)["quiescence"]
    assert (went["failure"], went["file_systems"]) == (None, 1)
    chosen = points(b, guest.name)[-1]
    quiesce_now(a, guest.name, "off")
    guest.stop()

    report = b.ask("failover", guest.name, "--point", "latest-app", "--yes")
    assert report["plan"]["point"] == chosen["point"]
    assert report["plan"]["newer_points"] >= 1
    said = b.watch_console(guest.name, "database: integrity .*\n", timeout=600)
    integrity, newest, file, stopped = database_said(said)
    assert integrity == "ok"
    assert newest == file == stopped

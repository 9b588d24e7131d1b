"""The command line against a real API: what scripts read, exit codes, errors."""

import socket as sockets
import threading
from pathlib import Path

import pytest
from api_kit import NEW, OLD, SmallAgent, cycle, failed_task, relation
from cli_kit import Program

from vmreplica import __version__
from vmreplica.cli import watch
from vmreplica.cli.show import cycle_text
from vmreplica.cli.watch import progress_text
from vmreplica.model import errors
from vmreplica.model.export import ExportSeed
from vmreplica.model.keep import Keep
from vmreplica.model.networks import NetworksChange, NetworksReport
from vmreplica.model.rates import NO_LIMIT, parse_limit
from vmreplica.model.report import (
    FailoverPlan,
    FailoverReport,
    HistoryReport,
    Invitation,
    PeerReport,
    PeersReport,
    PeerTest,
    PointsReport,
    Progress,
    RelationshipReport,
    StatusReport,
    TaskReport,
)
from vmreplica.model.seed import ExistingDisk, ExistingSeed
from vmreplica.model.shape import Shape
from vmreplica.model.start import AutostartReport, StartReport

pytestmark = pytest.mark.main_job


def networks_change(networks: dict[str, str], *unmap: str) -> tuple[object, ...]:
    return "change_networks", "web", NetworksChange(networks=networks, unmap=unmap)


FAMILIES = tuple(errors.VmReplicaError.__subclasses__())


@pytest.mark.parametrize(
    ("args", "shape"),
    [
        (("status",), StatusReport),
        (("status", "web"), StatusReport),
        (("points", "web"), PointsReport),
        (("history", "web", "--limit", "1"), HistoryReport),
        (("enable", "db", "--to", "backup1"), TaskReport),
        (("enable", "db", "--to", "backup1", "--no-wait"), TaskReport),
        (("sync", "web"), TaskReport),
        (("sync", "web", "--no-wait"), TaskReport),
        (("enable", "db", "--to", "backup1", "--at", "tomorrow 02:30"), TaskReport),
        (("enable", "db", "--to", "backup1", "--app-consistent", "every=1h"), TaskReport),
        (("limit", "web"), RelationshipReport),
        (("limit", "web", "50M"), RelationshipReport),
        (("hand-over", "web", "--to", "host2", "--yes"), RelationshipReport),
        (("start", "web"), StartReport),
        (("start", "db", "--dry-run"), StartReport),
        (("start", "web", "--i-am-sure"), StartReport),
        (("start", "db", "--i-am-sure", "--yes"), StartReport),
        (("autostart", "web", "--disable"), AutostartReport),
        (("networks", "web"), NetworksReport),
        (("networks", "web", "--map", "lan=br0"), NetworksReport),
        (("failover", "web", "--dry-run"), FailoverPlan),
        (("failover", "web", "--yes"), FailoverReport),
        (("peer", "invite"), Invitation),
        (("peer", "join", "abc"), PeerReport),
        (("peer", "list"), PeersReport),
        (("peer", "test", "backup1"), PeerTest),
    ],
)
def test_json_is_one_document_of_the_report_and_nothing_else(
    program: Program, args: tuple[str, ...], shape: type[Shape]
) -> None:
    ran = program(*args, "--json")
    assert (ran.code, ran.err) == (0, "")
    shape.model_validate(ran.document)


@pytest.mark.parametrize(
    ("args", "document"),
    [
        (("pause", "web"), {"result": "ok", "vm": "web"}),
        (("disable", "web", "--yes"), {"result": "ok", "vm": "web"}),
        (("peer", "remove", "backup1", "--yes"), {"result": "ok", "peer": "backup1"}),
        (("version",), {"version": __version__}),
    ],
)
def test_json_of_an_act_without_a_report_says_that_it_is_done(
    program: Program, args: tuple[str, ...], document: dict[str, str]
) -> None:
    ran = program(*args, "--json")
    assert (ran.code, ran.document, ran.err) == (0, document, "")


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (("enable", "db", "--to", "backup1", "--no-wait"), ("enable", "db", "backup1", 300, (), None)),
        (
            ("enable", "db", "--to", "backup1", "--seed", "export:/mnt/../srv/db", "--yes", "--no-wait"),
            ("enable", "db", "backup1", 300, (), None, ExportSeed(directory="/srv/db"), True),
        ),
        (("import", "/mnt/usb/./db", "--no-wait"), ("import", "/mnt/usb/db", None, None)),
        (
            ("enable", "db", "--to", "backup1", "--every", "30s", "--exclude-disk", "vdb", "--exclude-disk", "vdc",
             "--keep", "3", "--no-wait"),
            ("enable", "db", "backup1", 30, ("vdb", "vdc"), Keep(last=3)),
        ),
        (
            ("enable", "db", "--to", "backup1", "--limit", "mon-fri 08:00-18:00 20M", "--limit", "50M", "--no-wait"),
            ("enable", "db", "backup1", 300, (), None, ("limit", parse_limit(["mon-fri 08:00-18:00 20M", "50M"]))),
        ),
        (
            ("limit", "web", "sat 00:00-24:00 none", "8Mbit"),
            ("limit", "web", parse_limit(["sat 00:00-24:00 none", "1000000"])),
        ),
        (("limit", "web", "none"), ("limit", "web", NO_LIMIT)),
        (("failover", "web", "--cancel", "--yes"), ("cancel_failover", "web", False)),
        (("failover", "web", "--cancel", "--test", "--yes"), ("cancel_failover", "web", True)),
        (("failover", "web", "--test", "--dry-run", "--network", "lab"), ("plan_test", "web", None, "lab")),
        (("commit", "web", "--yes", "--no-wait"), ("commit", "web")),
        (("commit", "web", "--dry-run"), ("plan_commit", "web")),
        (("failover", "web", "--commit", "--dry-run"), ("plan_commit", "web")),
        (("failover", "web", "--cancel", "--dry-run"), ("plan_cancel", "web", False)),
        (("failover", "web", "--cancel", "--test", "--dry-run"), ("plan_cancel", "web", True)),
        (("failover", "web", "--test", "--for", "2h"), ("test_failover", "web", None, None, 7200)),
        (
            ("enable", "db", "--to", "backup1", "--seed", "existing:/srv/a,b.img", "--no-wait"),
            ("enable", "db", "backup1", 300, (), None, ExistingSeed(disks=(ExistingDisk(path="/srv/a,b.img"),))),
        ),
        (("disable", "web", "--yes"), ("disable", "web", False)),
        (("disable", "web", "--delete-copy", "-y"), ("disable", "web", True)),
        (("history", "web", "--limit", "7"), ("history", "web", 7)),
        (("failover", "web", "--yes"), ("failover", "web", None)),
        (("failover", "web", "--point", OLD, "--yes"), ("failover", "web", OLD)),
        (("failover", "web", "--point", OLD, "--dry-run"), ("plan_failover", "web", OLD)),
        (("hand-over", "web", "--to", "host2", "--yes"), ("hand_over", "web", "host2")),
        (("networks", "web", "--map", "a=b", "--map", "c=d=e"), networks_change({"a": "b", "c": "d=e"})),
        (("networks", "web", "--map", "b,vlan=2=bridge:o,vlan=3"), networks_change({"b,vlan=2": "bridge:o,vlan=3"})),
        (("networks", "web", "--unmap", "a", "--unmap", "b,vlan=1"), networks_change({}, "a", "b,vlan=1")),
        (("peer", "invite", "--for", "backup2"), ("invite", "backup2")),
        (("peer", "join", " abc "), ("join", "abc")),
    ],
)  # fmt: skip
def test_what_was_typed_reaches_the_agent(
    program: Program, agent: SmallAgent, args: tuple[str, ...], asked: tuple[object, ...]
) -> None:
    assert program(*args).code == 0
    assert agent.asked[-1] == asked


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_ends_with_its_exit_code_for_scripts_and_for_people(
    program: Program, agent: SmallAgent, family: type[errors.VmReplicaError]
) -> None:
    agent.error = family("some-code", "web: it broke", hint="mend it")
    for_scripts, for_people = program("points", "web", "--json"), program("points", "web")
    assert (for_scripts.code, for_people.code) == (family.exit_code, family.exit_code)
    assert for_scripts.document == {"error": agent.error.problem().model_dump()}
    assert for_scripts.err == ""
    assert for_people.out == ""
    assert for_people.err == "error: web: it broke (some-code)\n  mend it\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_failed_task_ends_with_its_own_exit_code(program: Program, agent: SmallAgent, as_json: bool) -> None:
    agent.progress[1:] = [failed_task(errors.NoSpace("no-space", "the store of backup1 is full"))]
    ran = program("sync", "web", *(["--json"] if as_json else []))
    assert ran.code == 7
    assert "no-space" in (ran.out if as_json else ran.err)
    if as_json:
        assert ran.document["error"]["code"] == "no-space"


def test_a_cycle_that_was_not_published_is_a_failure(program: Program, agent: SmallAgent) -> None:
    agent.progress[1:] = [TaskReport(id="t1", what="sync", done=True, result=cycle("cancelled"))]
    ran = program("sync", "web", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (1, "task-failed")


def test_what_is_not_known_of_a_cycle_is_not_told() -> None:
    begun = Progress(phase="preparing", done_bytes=0, total_bytes=0, wire_bytes=0, rate=0.0, seconds_left=None)
    assert progress_text(begun) == "preparing"
    assert progress_text(begun.model_copy(update={"wire_bytes": 2048})) == "preparing, 2.0 KiB sent"
    failed = cycle("failed").model_copy(update={"point": None})
    assert cycle_text("web", failed) == "web: failed (delta) after 2s"


def test_progress_is_told_in_lines_on_standard_error_when_it_is_no_terminal(program: Program) -> None:
    ran = program("enable", "db", "--to", "backup1")
    assert ran.code == 0
    assert "db: copying 512.0 MiB of 1.0 GiB, 95.4 MiB/s, 128.0 MiB sent, 5s left" in ran.err
    assert ran.out == f"db: point {NEW} published (delta): 5.0 MiB of the guest, 2.0 MiB sent, 2s\n"


def test_stopping_to_watch_does_not_stop_the_work_and_says_so(
    program: Program, agent: SmallAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "sleep", interrupt)
    ran = program("sync", "web")
    assert ran.code == 130
    assert "the work goes on: vmreplica status web" in ran.err
    assert agent.asked == [("sync", "web")]
    as_json = program("sync", "web", "--json")
    assert (as_json.code, as_json.document["done"]) == (130, False)


def test_without_an_agent_the_error_names_the_socket_and_how_to_start_one(tmp_path: Path) -> None:
    ran = Program(tmp_path / "none.sock")("status", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (8, "agent-not-running")
    assert str(tmp_path / "none.sock") in ran.document["error"]["message"]
    assert "systemctl start vmreplica" in ran.document["error"]["hint"]
    assert "agent-not-running" in Program(tmp_path / "none.sock")("status").err


def test_the_socket_option_wins_over_the_environment(program: Program, tmp_path: Path) -> None:
    assert program("status", "--socket", str(tmp_path / "other.sock")).code == 8
    assert Program(tmp_path / "other.sock")("status", "--socket", str(program.socket)).code == 0


def _answering(socket: Path, answer: bytes) -> threading.Thread:
    listening = sockets.socket(sockets.AF_UNIX)
    listening.bind(str(socket))
    listening.listen()

    def serve() -> None:
        with listening:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "code", "exit_code"),
    [
        (b"", "agent-connection-lost", 8),
        (b"SSH-2.0-OpenSSH\r\n", "agent-connection-lost", 8),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", "agent-connection-lost", 8),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno", "agent-answer-unknown", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "agent-answer-unknown", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "agent-answer-unknown", 1),
    ],
)
def test_an_answer_that_is_not_an_agents_is_a_clear_error(
    tmp_path: Path, answer: bytes, code: str, exit_code: int
) -> None:
    thread = _answering(tmp_path / "agent.sock", answer)
    ran = Program(tmp_path / "agent.sock")("status")
    thread.join(10)
    assert ran.code == exit_code
    assert f"({code})" in ran.err


def test_json_of_an_answer_that_is_not_json_is_an_error_document(tmp_path: Path) -> None:
    thread = _answering(tmp_path / "agent.sock", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{")
    ran = Program(tmp_path / "agent.sock")("status", "--json")
    thread.join(10)
    assert (ran.code, ran.document["error"]["code"]) == (1, "agent-answer-unknown")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("enable", "web", "--to", "backup1", "--every", "soon"), "interval-invalid"),
        (("enable", "web", "--to", "backup1", "--every", "4s"), "interval-invalid"),
        (("enable", "web", "--to", "backup1", "--every", "2d"), "interval-invalid"),
        (("enable", "web", "--to", "../x"), "request-invalid"),
        (("enable", "web", "--to", "backup1", "--app-consistent", "hourly"), "app-consistent-invalid"),
        (("enable", "web", "--to", "backup1", "--app-consistent", "every=1s"), "app-consistent-invalid"),
        (("enable", "web", "--to", "backup1", "--exclude-disk", "/dev/sda"), "request-invalid"),
        (("failover", "web", "--point", "yesterday", "--yes"), "request-invalid"),
        (("failover", "web", "--point", "yesterday", "--dry-run"), "point-id-invalid"),
        (("networks", "web", "--map", "lan"), "network-map-invalid"),
        (("networks", "web", "--map", "lan=br0,vlan=4095"), "request-invalid"),
        (("networks", "web", "--ip", "0=192.0.2.7"), "addresses-invalid"),
        (("networks", "web", "--ip", "0=192.0.2.7/24", "--ip", "0=192.0.2.8/24"), "addresses-invalid"),
        (("networks", "web", "--ip", "192.0.2.7/24"), "addresses-invalid"),
        (("networks", "web", "--ip", "eth0=192.0.2.7/24"), "request-invalid"),
        (("networks", "web", "--map", "lan=none,vlan=1"), "request-invalid"),
        (("networks", "web", "--map", "lan="), "network-map-invalid"),
        (("networks", "web", "--map", "a=b", "--map", "a=c"), "network-map-invalid"),
        (("history", "web", "--limit", "0"), "limit-invalid"),
        (("points", ""), "name-missing"),
        (("points", "a/b"), "vm-name-invalid"),
        (("points", "\udcff"), "vm-unknown"),
        (("status", ""), "vm-name-invalid"),
        (("status", "--watch"), "watch-is-for-people"),
        (("peer", "join", " "), "request-invalid"),
        (("peer", "test", "nobody"), "peer-unknown"),
        (("enable", "web"), "usage"),
        (("enable", "web", "--to", "backup1", "--keep", "many"), "keep-invalid"),
        (("nonsense",), "usage"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    program: Program, agent: SmallAgent, args: tuple[str, ...], code: str
) -> None:
    before = dict(agent.relations)
    ran = program(*args, "--json")
    assert ran.document["error"]["code"] == code
    assert ran.code in {2, 3}
    assert program(*args).code == ran.code
    assert agent.relations == before


@pytest.mark.parametrize("name", ["a b", "50%", "ü", "a?b#c", "a{b}", "a;b&c=d+e", "..", "[x]", "--odd"])
def test_a_vm_with_an_odd_name_can_be_asked_for(program: Program, agent: SmallAgent, name: str) -> None:
    agent.relations[name] = relation(name)
    if name.startswith("-"):
        assert program("points", "--json", "--", name).document["error"]["code"] == "vm-name-invalid"
        return
    assert program("points", name, "--json").document["name"] == name
    assert [r["name"] for r in program("status", name, "--json").document["relationships"]] == [name]


@pytest.mark.parametrize(
    "args",
    [
        ("failover", "web"),
        ("failover", "web", "--cancel"),
        ("commit", "web"),
        ("disable", "web"),
        ("disable", "web", "--delete-copy"),
        ("peer", "remove", "backup1"),
    ],
)
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_without_a_terminal_what_needs_a_confirmation_is_refused(
    program: Program, agent: SmallAgent, args: tuple[str, ...], json_flag: tuple[str, ...]
) -> None:
    ran = program(*args, *json_flag)
    assert ran.code == 2
    assert "confirmation-needed" in (ran.out if json_flag else ran.err)
    assert {what for what, *_ in agent.asked} <= {"plan_failover", "plan_cancel", "plan_commit"}


def test_the_refused_failover_names_what_would_be_lost(program: Program) -> None:
    ran = program("failover", "web", "--point", OLD)
    assert "Lost: everything the guest wrote after 2026-11-22" in ran.err
    assert "(5m until now), though 1 newer recovery point would lose less" in ran.err
    assert "the primary still answers" in ran.err


@pytest.mark.parametrize("args", [("commit", "web", "--yes"), ("failover", "web", "--commit", "--yes")])
def test_a_commit_is_followed_to_its_end(program: Program, agent: SmallAgent, args: tuple[str, ...]) -> None:
    ran = program(*args)
    assert ran.code == 0
    assert "web no longer stands on recovery points; 5.0 MiB were given back." in ran.out
    assert "/s/vda.qcow2" in ran.out
    assert agent.asked[0] == ("commit", "web")


def test_a_refused_commit_names_what_would_be_lost(program: Program) -> None:
    ran = program("commit", "web")
    assert "Lost: the recovery points of web here, and the way back to them." in ran.err


def test_a_refused_cancellation_names_what_would_be_lost(program: Program) -> None:
    ran = program("failover", "web", "--cancel")
    assert "Lost: everything web wrote since its failover, 1m 30s ago (at most 5.0 MiB)." in ran.err


def test_test_failovers_are_cancelled_without_a_question(program: Program, agent: SmallAgent) -> None:
    assert program("failover", "web", "--cancel", "--test").code == 0
    assert agent.asked == [("cancel_failover", "web", True)]


def test_a_dry_run_of_a_failover_shows_the_plan_and_does_nothing(program: Program, agent: SmallAgent) -> None:
    ran = program("failover", "web", "--dry-run")
    assert ran.code == 0
    assert f"Unplanned failover of web from point {NEW}" in ran.out
    assert "1. define web with 1 disk" in ran.out
    assert "Afterwards:\n  here: web runs\n" in ran.out
    assert agent.asked == [("plan_failover", "web", None)]


def test_a_failover_tells_what_it_did_and_what_is_lost(program: Program) -> None:
    ran = program("failover", "web", "--yes")
    assert f"web runs here from point {NEW} after 1.2 s; it is now failed-over." in ran.out
    assert "Lost: everything" in ran.out

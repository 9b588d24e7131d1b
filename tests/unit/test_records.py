"""History and events as they are asked for: through the API, on the command line, and who wrote them."""

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from api_kit import NOW, OLD, SmallAgent, ailing, cycle, relation, serving, summary
from cli_kit import Program
from point_kit import VM as VM_ID
from prometheus_client.parser import text_string_to_metric_families

from vmreplica.agent.acts import Acts
from vmreplica.agent.journal import Journal
from vmreplica.agent.receipts import Receipts
from vmreplica.agent.records import Records
from vmreplica.agent.tasks import Tasks
from vmreplica.cli.client import AgentClient
from vmreplica.model.errors import BadRequest, Conflict, NotFound
from vmreplica.model.events import JournalEvent, RecordsQuery
from vmreplica.model.moments import parse_since
from vmreplica.model.report import Waiting
from vmreplica.model.telling import HealthTestReport, TellingResult

pytestmark = pytest.mark.points

VM = "11111111-2222-3333-4444-555555555555"
COMMAND = (sys.executable, "-m", "vmreplica.cli")


def event(number: int, code: str, kind: str = "failover", severity: str = "info", text: str = "it was") -> JournalEvent:
    fields = {"id": number, "at": NOW, "vm": VM, "name": "web", "kind": kind, "severity": severity}
    return JournalEvent.model_validate({**fields, "code": code, "text": text, "details": {"seconds": 1.5}})


def journal_of(root: Path) -> Journal:
    journal = Journal(root / "journal.db")
    journal.know(VM, "web")
    return journal


# ---- who writes


def test_an_act_is_written_down_with_how_it_ends(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    acts = Acts(journal)
    with acts.act("pause", "web", "the pause") as act:
        act.done("paused", "replication is paused", by="hand")
    with pytest.raises(Conflict), acts.act("failover", VM, "the failover"):
        raise Conflict("point-held", "it is held", hint="wait")
    with pytest.raises(NotFound), acts.act("failover", "nobody", "the failover"):
        raise NotFound("vm-unknown", "no such VM")
    with pytest.raises(BadRequest), acts.act("failover", "web", "the failover"):
        raise BadRequest("x", "y")
    done, failed = journal.events(limit=9)
    assert (done.vm, done.name, done.code, done.severity, done.details) == (VM, "web", "paused", "info", {"by": "hand"})
    assert (failed.code, failed.severity, failed.text) == ("point-held", "warning", "the failover failed: it is held")
    journal.close()


def test_a_task_is_written_down_when_it_ends(tmp_path: Path) -> None:
    journal, tasks = journal_of(tmp_path), Tasks()
    good, bad, over = (tasks.start("something") for _ in range(3))
    over.finish(None, None)
    with Acts(journal).act("reverse", "web", "the swap") as act:
        for task in (good, bad, over):
            act.follow(task, "swapped", "it goes the other way")
    assert [event.code for event in journal.events(limit=9)] == ["swapped"]
    good.finish(None, None)
    bad.finish(None, Conflict("no", "it cannot"))
    assert [event.code for event in journal.events(limit=9)] == ["swapped", "swapped", "no"]
    journal.close()


def test_a_received_point_is_a_run_of_its_own_once(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    receipts, point = Receipts(journal), summary(OLD)
    receipts.opened(VM, OLD)
    time.sleep(0.05)
    receipts.published(VM, point)
    receipts.published(VM, point)
    (run,) = journal.history(VM, 9, side="received")
    assert (run.point, run.side, run.outcome, run.wire_bytes) == (OLD, "received", "published", point.wire_bytes)
    assert run.seconds >= 0.05
    assert run.rate == pytest.approx(point.wire_bytes / run.seconds)
    assert journal.history(VM, 9) == ()
    assert [event.code for event in journal.events(limit=9)] == ["point-received"]
    journal.close()


def test_history_has_runs_of_both_sides_and_acts_chosen_by_kind_and_time(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    records = Records(journal, lambda vm: journal.named(vm)[0] or "", lambda: HealthTestReport(hook=None, webhook=None))
    journal.record(VM, cycle())
    Receipts(journal).published(VM, summary(OLD))
    journal.event(VM, "cycle", "cycle-published", "...")
    journal.event(VM, "test", "test-started", "...")
    journal.event(VM, "pause", "paused", "...")

    def asked(**chosen: Any) -> tuple[int, int, list[str]]:
        found = records.history("web", RecordsQuery(**chosen))
        return len(found.cycles), len(found.received), [event.code for event in found.events]

    assert asked() == (1, 1, ["paused", "test-started"])
    assert asked(kinds=("test",)) == (0, 0, ["test-started"])
    assert asked(kinds=("cycle",)) == (1, 0, [])
    assert asked(kinds=("receipt", "pause")) == (0, 1, ["paused"])
    assert asked(since=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == (0, 0, [])
    journal.close()


def test_whoever_follows_events_misses_none_and_gets_none_twice(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    records = Records(journal, lambda vm: vm, lambda: HealthTestReport(hook=None, webhook=None))
    journal.event(VM, "pause", "e0", "...")
    first = records.events(None, RecordsQuery(), None)
    seen, after = [event.code for event in first.events], first.newest
    for number in range(1, 8):
        journal.event(VM, "pause" if number % 2 else "scrub", f"e{number}", "...")
    for _ in range(5):
        report = records.events(None, RecordsQuery(limit=3, kinds=("pause",)), after)
        seen += [event.code for event in report.events]
        after = report.newest
    assert seen == ["e0", "e1", "e3", "e5", "e7"]
    assert after == journal.newest()
    journal.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", NOW - dt.timedelta(hours=12)),
        ("7d", NOW - dt.timedelta(days=7)),
        ("2026-11-20", dt.datetime(2026, 11, 20, tzinfo=dt.UTC)),
        ("2026-11-20 14:30", dt.datetime(2026, 11, 20, 14, 30, tzinfo=dt.UTC)),
        ("2026-11-20T14:30:00+02:00", dt.datetime(2026, 11, 20, 12, 30, tzinfo=dt.UTC)),
    ],
)
def test_since_is_a_time_ago_or_a_moment(text: str, expected: dt.datetime) -> None:
    assert parse_since(text, NOW, dt.UTC) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "12", "999999999d"])
def test_since_that_is_neither_is_refused_or_means_seconds(text: str) -> None:
    if text == "12":
        assert parse_since(text, NOW) == NOW - dt.timedelta(seconds=12)
        return
    with pytest.raises(ValueError, match="is no time before now"):
        parse_since(text, NOW)


# ---- the API


def client(tmp_path: Path) -> AgentClient:
    return AgentClient(tmp_path / "agent.sock")


def test_a_question_for_news_waits_for_them(tmp_path: Path) -> None:
    agent = SmallAgent()
    with serving(agent, tmp_path / "agent.sock"):
        agent.records.happened.append(event(5, "old"))
        threading.Timer(0.7, agent.records.happened.append, (event(6, "new"),)).start()
        began = time.monotonic()
        found = json.loads(client(tmp_path).get("/v1/events", after="5", wait="20"))
        assert [event["code"] for event in found["events"]] == ["new"]
        assert found["newest"] == 6
        assert 0.5 < time.monotonic() - began < 15
        nothing = json.loads(client(tmp_path).get("/v1/events", after="6", wait="0.2"))
        assert (nothing["events"], nothing["newest"]) == ([], 6)


def test_whoever_waits_for_news_does_not_hold_up_the_end_of_the_agent(tmp_path: Path) -> None:
    agent = SmallAgent()
    with serving(agent, tmp_path / "agent.sock"):
        waiting = threading.Thread(
            target=lambda: client(tmp_path).get("/v1/events", after="5", wait="30"), name="waits"
        )
        waiting.start()
        assert agent.entered.wait(20)
        time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"kind": "party"}, "kind-unknown"),
        ({"after": "-1"}, "request-invalid"),
        ({"after": "9" * 30}, "request-invalid"),
        ({"after": "1", "wait": "x"}, "request-invalid"),
        ({"since": "yesterday"}, "request-invalid"),
        ({"limit": "1001"}, "limit-invalid"),
        ({"vm": "a/b"}, "vm-name-invalid"),
    ],
)
def test_wrong_questions_are_refused(tmp_path: Path, query: dict[str, str], code: str) -> None:
    with serving(SmallAgent(), tmp_path / "agent.sock"), pytest.raises(BadRequest) as refused:
        client(tmp_path).get("/v1/events", **query)
    assert refused.value.code == code


# ---- the command line


def test_events_are_lines_for_people_and_lines_of_json_for_programs(program: Program, agent: SmallAgent) -> None:
    agent.records.happened += [
        event(1, "failed-over"),
        event(2, "rpo-exceeded", "health", "critical", "old \x1b[31m\nand red"),
    ]
    first, second = program("events").out.splitlines()
    assert first.endswith("web: [failover] it was (failed-over)")
    assert second.endswith(r"web: [health] CRITICAL old \x1b[31m and red (rpo-exceeded)")
    lines = [json.loads(line) for line in program("events", "web", "--kind", "health", "--json").out.splitlines()]
    assert [line["code"] for line in lines] == ["rpo-exceeded"]


def test_an_error_of_events_is_one_line_of_json_too(program: Program) -> None:
    ran = program("events", "nobody", "--json")
    assert ran.code == 3
    (line,) = ran.out.splitlines()
    assert json.loads(line)["error"]["code"] == "vm-unknown"
    assert program("events", "--since", "yesterday", "--json").document["error"]["code"] == "since-invalid"


def test_history_shows_what_else_happened(program: Program, agent: SmallAgent) -> None:
    agent.records.happened.append(event(1, "failed-over", text="started here"))
    out = program("history", "web", "--since", "2026-11-22", "--kind", "failover").out
    assert "failed-over" in out
    assert "started here" in out
    assert agent.asked[-1][:4] == ("history", "web", 20, "failover")


def _follow(socket: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        # Whoever runs the tests in the background has its children ignore Ctrl-C.
        ["env", "--default-signal=INT", *COMMAND, "events", "--follow", *more],
        env={**os.environ, "VMREPLICA_SOCKET": str(socket)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _line(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def _interrupted(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Press Ctrl-C, again when nothing happens: one that comes just before a read begins is seen when that ends."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=3)
    raise AssertionError("it does not end")


def test_following_outlives_the_agent_and_ends_cleanly_with_ctrl_c(tmp_path: Path) -> None:
    agent, socket = SmallAgent(), tmp_path / "agent.sock"
    agent.records.happened.append(event(1, "one"))
    with serving(agent, socket):
        process = _follow(socket, "--json")
        assert _line(process)["code"] == "one"
        agent.records.happened.append(event(2, "two"))
        assert _line(process)["code"] == "two"
    agent.records.happened.append(event(3, "three"))
    time.sleep(1)
    with serving(agent, socket):
        assert _line(process)["code"] == "three"
        out, err = _interrupted(process)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err
    assert err.count("waiting for the agent") <= 1


def test_following_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    agent, socket = SmallAgent(), tmp_path / "agent.sock"
    agent.records.happened.append(event(1, "one"))
    with serving(agent, socket):
        process = _follow(socket)
        assert process.stdout is not None
        assert "one" in process.stdout.readline()
        process.stdout.close()
        agent.records.happened += [event(2, "two")]
        process.wait(30)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()
    assert process.returncode == 0


def test_a_test_of_the_hook_is_shown_and_its_failure_is_an_exit_code(program: Program, agent: SmallAgent) -> None:
    ran = program("health-test")
    assert ran.code == 0
    assert ran.out == "hook /usr/local/bin/hook: told (0.1 s)\nwebhook: none is configured\n"
    failed = TellingResult(to="https://x:443", ok=False, text="it did not answer in time", seconds=10)
    agent.records.tested = HealthTestReport(hook=None, webhook=failed)
    ran = program("health-test")
    assert ran.code == 1
    assert "webhook https://x:443: FAILED, it did not answer in time" in ran.out
    assert program("health-test", "--json").document["webhook"]["ok"] is False


def test_the_check_for_monitoring_is_one_line_and_an_exit_code(program: Program, agent: SmallAgent) -> None:
    ran = program("status", "--check")
    assert (ran.code, ran.out) == (
        0, "VMREPLICA OK - 1 relationship is well | relationships=1 ill=0 oldest_point=75s\n"
    )  # fmt: skip
    agent.relations["db"] = ailing().model_copy(update={"name": "db|1"})
    ran = program("status", "--check")
    assert ran.code == 2
    assert ran.out.startswith("VMREPLICA CRITICAL - db/1: the newest point is 1h old (rpo-exceeded) | relationships=2")
    assert program("status", "web", "--check").code == 0
    assert program("status", "nobody", "--check").code == 3
    agent.relations.clear()
    assert program("status", "--check").out.startswith("VMREPLICA OK - 0 relationships are well")
    assert Program(program.socket.with_name("none"))("status", "--check").code == 3


# ---- metrics


def test_metrics_count_runs_waiting_reasons_events_and_show_measures(tmp_path: Path) -> None:
    agent = SmallAgent()
    agent.relations["web"] = relation("web", measures={"boot_test_failures": 2.0, "store_free_bytes": 5e9})
    agent.relations["db"] = ailing().model_copy(update={"name": "db"})
    run = cycle().model_copy(update={"waiting": Waiting(queue=3.0, limit=0.5)})
    for report in (run, run, cycle("failed")):
        agent.records.totals.add(VM_ID, report)
    agent.records.totals.count(event(1, "x", "merge"))
    with serving(agent, tmp_path / "agent.sock"):
        text = client(tmp_path).get("/v1/metrics").decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            shown = {key: value for key, value in sample.labels.items() if key not in {"vm", "role", "peer"}}
            samples[f"{sample.name} {sorted(shown.values())}"] = sample.value
    assert samples["vmreplica_runs_total ['delta', 'published', 'sent', 'web']"] == 2
    assert samples["vmreplica_runs_total ['delta', 'failed', 'sent', 'web']"] == 1
    assert samples["vmreplica_run_wire_bytes_total ['sent', 'web']"] == 3 * (2 << 20)
    assert samples["vmreplica_run_seconds_total ['sent', 'web']"] == 4.5
    assert samples["vmreplica_run_waiting_seconds_total ['queue', 'sent', 'web']"] == 6
    assert samples["vmreplica_run_guest_bytes_total ['received', 'web']"] == 0
    assert samples["vmreplica_health_reason ['critical', 'db', 'rpo-exceeded']"] == 1
    assert samples["vmreplica_boot_test_failures ['web']"] == 2
    assert samples["vmreplica_store_free_bytes []"] == 5e9
    assert samples["vmreplica_events_total ['info', 'merge']"] == 1

"""The boot-test command against a real API."""

import datetime as dt
from pathlib import Path

import pytest
from api_kit import SmallAgent, relation
from boot_kit import POINT, result
from cli_kit import Program

from vmreplica.cli.show_boot import verdict_text
from vmreplica.model.boot import BootRecord, BootSchedule, BootSkip, boot_state
from vmreplica.model.health import Facts, Level, judge
from vmreplica.model.proof import BootFacts
from vmreplica.model.states import State

pytestmark = pytest.mark.points


def test_a_test_is_planned_and_the_point_of_the_plan_is_booted(program: Program, agent: SmallAgent) -> None:
    ran = program("boot-test", "web", "--sign", "console:web login:", "--limit", "2m")
    assert ran.code == 0
    assert "came to life after 12.4 s (the guest agent answers)" in ran.out
    assert "--picture web.png" in ran.out
    assert agent.asked[:2] == [
        ("plan-boot", "web", None, "console:web login:", 120, None),
        ("boot", "web", POINT, "console:web login:"),
    ]


def test_a_guest_without_life_makes_the_exit_code_11(program: Program, agent: SmallAgent) -> None:
    agent.boots.result = result(
        verdict="silent", seconds=None, limit=301, picture=False, told="the console said \x1b[2J"
    )
    ran = program("boot-test", "web")
    assert ran.code == 11
    assert "showed no sign of life within 5m 1s" in ran.out
    assert "\x1b" not in ran.out
    ran = program("boot-test", "web", "--json")
    assert (ran.code, ran.document["booted"]["result"]["verdict"]) == (11, "silent")


def test_a_network_that_leads_out_needs_a_word(program: Program, agent: SmallAgent) -> None:
    agent.boots.warnings = ("network lan leads out of this host",)
    assert program("boot-test", "web", "--network", "lan", "--json").document["error"]["code"] == "confirmation-needed"
    asked = program("boot-test", "web", "--network", "lan", "--every", "1d", "--json")
    assert asked.document["error"]["code"] == "confirmation-needed"
    assert not any(act[0] in {"boot", "schedule-boots"} for act in agent.asked)
    assert program("boot-test", "web", "--network", "lan", "--yes").code == 0
    assert program("boot-test", "web", "--network", "lan", "--every", "1d", "--yes").code == 0


def test_a_schedule_is_set_and_taken_back(program: Program, agent: SmallAgent) -> None:
    assert "every 1d at 03:00" in program("boot-test", "web", "--every", "1d", "--at", "03:00").out
    assert "no boot tests run by themselves" in program("boot-test", "web", "--off").out
    assert agent.asked == [
        ("schedule-boots", "web", 86400, "03:00", "auto"),
        ("schedule-boots", "web", None, None, "auto"),
    ]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--sign", "smoke"), "request-invalid"),
        (("--sign", "tcp:22"), "request-invalid"),
        (("--sign", "tcp:99999", "--network", "x"), "request-invalid"),
        (("--sign", "console:"), "request-invalid"),
        (("--sign", "script:relative"), "request-invalid"),
        (("--limit", "1s"), "request-invalid"),
        (("--limit", "soon"), "duration-invalid"),
        (("--every", "1h", "--at", "03:00"), "request-invalid"),
        (("--every", "1d", "--at", "25:00"), "request-invalid"),
        (("--at", "03:00"), "options-contradict"),
        (("--every", "1d", "--point", POINT), "options-contradict"),
        (("--off", "--every", "1d"), "options-contradict"),
        (("--picture", "f", "--sign", "agent"), "options-contradict"),
        (("--force",), "options-contradict"),
    ],
)
def test_nonsense_is_refused(program: Program, agent: SmallAgent, options: tuple[str, ...], code: str) -> None:
    ran = program("boot-test", "web", *options, "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, code)
    assert ran.document["error"]["hint"]
    assert agent.asked == []


def test_a_picture_is_written_once(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "web.png"
    assert program("boot-test", "web", "--picture", str(file)).code == 0
    assert file.read_bytes() == b"\x89PNG of web"
    assert program("boot-test", "web", "--picture", str(file), "--json").document["error"]["code"] == "file-exists"
    file.write_bytes(b"old")
    document = program("boot-test", "web", "--picture", str(file), "--force", "--json").document
    assert document == {"result": "ok", "file": str(file), "bytes": 11}
    missing = program("boot-test", "db", "--picture", str(tmp_path / "db.png"), "--json").document
    assert missing["error"]["code"] == "no-picture"
    assert not (tmp_path / "db.png").exists()
    away = program("boot-test", "web", "--picture", str(tmp_path / "no" / "web.png"), "--json").document
    assert away["error"]["code"] == "file-unwritable"


def test_status_and_points_show_what_came_of_boot_tests(program: Program, agent: SmallAgent) -> None:
    failed = result(verdict="silent", seconds=None, limit=300, told="the serial console said nothing")
    schedule = BootSchedule(every=86400, at="03:00", since=failed.started)
    record = BootRecord(
        schedule=schedule, last=failed, failures=1, attempted=failed.started,
        skipped=BootSkip(at=failed.started, why="2.0 GiB are available here"),
    )  # fmt: skip
    agent.relations["web"] = relation("web", role="replica", boot=boot_state(record, dt.UTC))
    shown = program("status", "web").out
    for text in ("showed no sign of life within 5m", "said nothing", "2.0 GiB are available", "every 1d at 03:00"):
        assert text in shown
    assert [verdict_text(shown) for shown in (None, result(), failed)] == ["", "alive 12s", "silent"]


def test_health_takes_a_second_failure_in_a_row_for_critical_and_a_missing_one_for_overdue() -> None:
    def level(boot: BootFacts) -> list[tuple[str, Level]]:
        health = judge(Facts(state=State.REPLICATING, interval=60, point_age=1, boot=boot))
        return [(reason.code, reason.level) for reason in health.reasons]

    assert level(BootFacts(period=None, age=1.0)) == []
    assert level(BootFacts(period=None, age=1.0, failures=1)) == [("boot-test-failed", Level.WARNING)]
    assert level(BootFacts(period=None, age=1.0, failures=2)) == [("boot-test-failed", Level.CRITICAL)]
    assert level(BootFacts(period=60.0, age=121.0)) == [("boot-test-overdue", Level.WARNING)]

"""The command line against a real API: what people read."""

import pytest
from api_kit import NEW, NOW, OLD, SmallAgent, ailing, relation
from cli_kit import Program

from vmreplica import __version__
from vmreplica.model.rates import parse_limit
from vmreplica.model.states import State

pytestmark = pytest.mark.main_job


def test_the_status_table_has_a_row_per_vm_and_what_is_wrong_below(program: Program, agent: SmallAgent) -> None:
    agent.relations["db"] = ailing()
    ran = program("status")
    rows = ran.out.splitlines()
    assert " ".join(rows[0].split()) == "VM role peer state health newest point points last cycle next"
    assert " ".join(rows[1].split()) == (
        "web primary backup1 replicating normal 1m 15s (of 5m) 2 2.0 MiB in 2s in 1m 30s"
    )
    assert "critical" in rows[2]
    assert "copying 50%, 95.4 MiB/s" in rows[2]
    assert "the newest point is 1h old (rpo-exceeded)" in rows[3]
    assert rows[4] == "  see the log"


def test_a_name_with_an_escape_sequence_cannot_paint_the_terminal(program: Program, agent: SmallAgent) -> None:
    agent.relations["db"] = ailing()
    out = program("status").out
    assert "\x1b" not in out
    assert r"db\x1b[31m [bold]" in out


def test_the_status_of_one_vm_is_shown_in_detail(program: Program, agent: SmallAgent) -> None:
    agent.relations["web"] = relation("web", state=State.INITIAL, excluded=("vdb",), latest=None, point_age=None)
    out = program("status", "web").out
    for text in (
        "initial-replication",
        "5m",
        "the last 24 (--keep last=24)",
        "vdb",
        "in 1m 30s",
        "5.0 MiB of the guest",
    ):
        assert text in out


def test_status_of_a_host_without_relationships_says_what_to_do(program: Program, agent: SmallAgent) -> None:
    agent.relations.clear()
    assert "vmreplica enable VM --to PEER" in program("status").out


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (("points", "web"), (NEW, OLD, "vda", "256.0 MiB", "crash")),
        (("history", "web"), ("published", "failed", "interval", "5.0 MiB")),
        (("peer", "list"), ("backup1", "192.0.2.7:7432", "b" * 32)),
        (("peer", "test", "backup1"), ("-0.250 s", "1.5 ms", "104.9 MiB/s", "! its clock is 0.25 s behind")),
        (("peer", "invite"), ("vmreplica peer join eyJ0b2tlbiI",)),
        (("peer", "join", "abc"), ("Paired with backup1", "in both directions")),
        (("pause", "web"), ("web is paused",)),
        (("networks", "web", "--map", "lan=br0"), ("lan -> br0",)),
        (("sync", "web", "--no-wait"), ("vmreplica status web",)),
        (("version",), (__version__,)),
    ],
)
def test_people_read_the_report_as_text(program: Program, args: tuple[str, ...], texts: tuple[str, ...]) -> None:
    ran = program(*args)
    assert ran.code == 0
    assert [text for text in texts if text not in ran.out] == []


def test_pausing_and_resuming_is_told(program: Program) -> None:
    assert program("pause", "web").code == 0
    assert program("resume", "web").out == "web is replicated again.\n"
    assert program("resume", "web").code == 5


def test_a_scheduled_beginning_is_told_and_not_waited_for(program: Program, agent: SmallAgent) -> None:
    ran = program("enable", "db", "--to", "backup1", "--at", "tomorrow 02:30")
    assert ran.code == 0
    assert "Initial replication of db begins" in ran.out
    assert "02:30; vmreplica sync db begins it now" in ran.out
    (asked,) = (asked for asked in agent.asked if asked[0] == "enable")
    assert asked[-1][0] == "at"  # type: ignore[index]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("enable", "db", "--to", "backup1", "--at", "2020-01-01T10:00"), "begin-invalid"),
        (("enable", "db", "--to", "backup1", "--at", "soon"), "begin-invalid"),
        (("enable", "db", "--to", "backup1", "--limit", "fast"), "limit-rate-invalid"),
        (("limit", "web", "1M", "2M"), "limit-rate-invalid"),
    ],
)
def test_what_is_no_moment_and_no_rate_is_refused_before_the_agent_is_asked(
    program: Program, agent: SmallAgent, args: tuple[str, ...], code: str
) -> None:
    ran = program(*args, "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, code)
    assert ran.document["error"]["hint"]
    assert not agent.asked


def test_the_limit_in_force_is_shown_with_its_end_and_what_is_set(program: Program, agent: SmallAgent) -> None:
    assert program("limit", "web").out == "web: no limit\n"
    assert program("limit", "web", "50M").out == "web: 50.0 MiB/s (set: 50.0 MiB/s)\n"
    agent.relations["web"] = agent.relations["web"].model_copy(
        update={"rate": 1 << 20, "limit": parse_limit(["mon-fri 08:00-18:00 1M"]), "rate_until": NOW}
    )
    told = f"1.0 MiB/s until {NOW.astimezone():%a %H:%M} (set: mon-fri 08:00-18:00 1.0 MiB/s)"
    assert program("limit", "web").out == f"web: {told}\n"
    assert told in " ".join(program("status", "web").out.split())


def test_status_tells_when_a_vm_begins_and_that_it_waits_for_its_turn(program: Program, agent: SmallAgent) -> None:
    web = agent.relations["web"]
    agent.relations["web"] = web.model_copy(update={"begins_at": NOW})
    assert f"begins {NOW.astimezone():%Y-%m-%d %H:%M}" in " ".join(program("status", "web").out.split())
    agent.relations["web"] = web.model_copy(update={"waits": "resync-queued"})
    assert "waiting for its turn to resynchronize" in program("status", "web").out

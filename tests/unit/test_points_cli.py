"""The points commands against a real API."""

from pathlib import Path

import pytest
from api_kit import NEW, OLD, SmallAgent, relation
from cli_kit import Program
from taking_kit import POINT

from vmreplica.cli import watch
from vmreplica.model.keep import parse_keep
from vmreplica.model.keeping import Verdict
from vmreplica.model.merging import MergePlan, PlannedMerge
from vmreplica.model.report import TaskReport
from vmreplica.model.taking import PointExportWish

pytestmark = pytest.mark.points


def test_a_first_word_that_is_no_command_is_a_vm(program: Program, agent: SmallAgent) -> None:
    assert NEW in program("points", "web").out
    assert program("points", "--json", "web").document["points"][0]["point"] == NEW
    assert program("points", "list", "web", "--json").document["name"] == "web"
    assert program("points", "list", "export").code == 3, "a VM called like a command, and unknown"
    assert agent.asked == [("points", "web")] * 3 + [("points", "export")]


def test_a_plan_says_which_points_stay_by_which_rule(program: Program, agent: SmallAgent) -> None:
    agent.verdicts = {
        NEW: Verdict(keep=True, reasons=("newest", "within 1h")),
        OLD: Verdict(keep=False, reasons=("no rule keeps it",)),
    }
    steps = tuple(PlannedMerge(point=OLD, act="delete", text=f"deleted \x1b[2J{n}") for n in range(12))
    agent.merges = MergePlan(chain_depth=31, bound=30, steps=steps, waiting={OLD: "it is open"})
    out = program("points", "web", "--plan").out
    assert "web keeps all of the last 1h, 24 hourly, 7 daily (--keep within=1h,hourly=24,daily=7)" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("2026")}
    assert lines[NEW].split("MiB ")[1].split() == ["keep", "newest,", "within", "1h"]
    assert lines[OLD].split("MiB ")[1].split() == ["drop", "no", "rule", "keeps", "it", "it", "is", "open"]
    assert "The longest chain has 31 images; more than 30 are merged." in out
    assert ("and 2 more steps" in out, "\x1b" in out) == (True, False)
    assert "1 stay, 1 go" in out


def test_rules_are_sent_as_they_were_typed_and_refused_in_words(program: Program, agent: SmallAgent) -> None:
    text = "within=2h,hourly=48,daily=14,space=200G"
    assert program("enable", "db", "--to", "backup1", "--keep", text, "--no-wait").code == 0
    assert agent.asked[-1][5] == parse_keep(text)
    ran = program("enable", "db", "--to", "backup1", "--keep", "hourly=0", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, "keep-invalid")
    assert "would keep nothing" in ran.document["error"]["message"]


def test_points_are_pinned_with_a_reason_and_unpinned(program: Program, agent: SmallAgent) -> None:
    assert "stays until" in program("points", "pin", "web", "latest", "--reason", "before the upgrade").out
    assert program("points", "unpin", "web", "latest", "--json").document["point"] == POINT
    ran = program("points", "unpin", "web", OLD)
    assert (ran.code, "point-not-pinned" in ran.err) == (3, True)
    assert program("points", "pin", "web", "latest", "--reason", "two\nlines").code == 2
    assert agent.asked == [
        ("pin", "web", "latest", "before the upgrade"),
        ("unpin", "web", "latest"),
        ("unpin", "web", OLD),
    ]


def test_an_export_is_written_where_the_command_was_typed(
    program: Program, agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = program("points", "export", "web", "latest", "--to", "web.vhdx", "--format", "vhdx", "--check")
    assert ran.code == 0
    assert "is exported, and the same in the files" in ran.out
    wish = PointExportWish(to=str(tmp_path / "web.vhdx"), format="vhdx", check=True)
    assert ("plan-export", "web", "latest", wish) in agent.asked


def test_a_dry_run_of_an_export_writes_nothing(program: Program, agent: SmallAgent) -> None:
    agent.single.warnings = (f"point {POINT} is damaged: \x1b[2J",)
    ran = program("points", "export", "web", POINT, "--to", "/srv/x", "--dry-run", "--disk", "vda", "--even-damaged")
    assert "would write" in ran.out
    assert "\x1b" not in ran.out
    assert program("points", "export", "web", POINT, "--to", "/srv/x", "--dry-run", "--json").document["point"] == POINT
    assert agent.progress[0].exported is None


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("export", "web", "latest", "--to", "x", "--format", "floppy"), "request-invalid"),
        (("export", "web", "latest", "--to", "x", "--disk", "../vda"), "request-invalid"),
        (("export", "web", "latest"), "usage"),
        (("mount", "web", "latest", "--for", "5s"), "mount-time-invalid"),
        (("mount", "web", "latest", "--for", "long"), "mount-time-invalid"),
        (("unmount", "db"), "not-mounted"),
        (("pin", "web", ""), "name-missing"),
        (("web", "--plam"), "usage"),
    ],
)
def test_what_cannot_be_is_refused_with_a_code(program: Program, args: tuple[str, ...], code: str) -> None:
    assert program("points", *args, "--json").document["error"]["code"] == code


def test_a_mount_tells_its_addresses_and_how_they_are_read(program: Program, agent: SmallAgent) -> None:
    out = program("points", "mount", "web", "latest", "--for", "30m").out
    assert "nbd+unix:///vda?socket=/run/vmreplica/mounts/x/vda.sock" in out
    assert "guestfish --ro" in out
    assert program("points", "mount", "web", "latest", "--json").document["disks"][0]["target"] == "vda"
    assert POINT in program("points", "unmount", "web").out
    assert program("points", "unmount", "web", POINT).code == 0
    assert agent.asked == [
        ("mount", "web", "latest", 1800, False),
        ("mount", "web", "latest", 28800, False),
        ("unmount", "web", None),
        ("unmount", "web", POINT),
    ]


def test_status_shows_what_is_mounted(program: Program, agent: SmallAgent) -> None:
    mount = agent.single.mount("web", POINT, seconds=60, even_damaged=False)
    agent.relations["web"] = relation("web", role="replica", mounts=(mount,))
    assert f"point {POINT} until 2026-11-22" in " ".join(program("status", "web").out.split())


def test_ctrl_c_cancels_an_export_and_waits_until_nothing_is_left(
    program: Program, agent: SmallAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = TaskReport(id="t1", what="export", done=False)
    over = running.model_copy(update={"done": True, "error": "it was cancelled", "error_code": "export-cancelled"})

    def export(_vm: str, _point: str, _wish: PointExportWish) -> TaskReport:
        agent.progress = [running]
        return running

    def cancel(task_id: str) -> TaskReport:
        assert task_id == "t1"
        agent.progress = [running, over]
        return running

    naps = iter([KeyboardInterrupt])

    def sleep(_seconds: float) -> None:
        for error in naps:
            raise error

    monkeypatch.setattr(agent.single, "export", export)
    monkeypatch.setattr(agent, "cancel_task", cancel)
    monkeypatch.setattr(watch, "sleep", sleep)
    ran = program("points", "export", "web", "latest", "--to", "/srv/web.img")
    assert "export-cancelled" in ran.err
    assert agent.progress == [over]

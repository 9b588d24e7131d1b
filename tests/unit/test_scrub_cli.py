"""The scrub command and damaged points against a real API."""

import datetime as dt

import pytest
from api_kit import NEW, NOW, OLD, SmallAgent, relation, summary
from cli_kit import Program
from point_kit import VM as VM_ID

from vmreplica.cli.show import points_view, relation_view
from vmreplica.cli.show_scrub import scrub_pairs
from vmreplica.model.damage import Damage
from vmreplica.model.report import PointsReport, RelationshipReport, StatusReport
from vmreplica.model.scrubbing import ScrubReport, ScrubState

pytestmark = pytest.mark.points

DAMAGE = Damage(
    point=OLD, disk="vda", guest_offset=65536, length=4096, file="vda.qcow2", what="patch", text="the block\x1b[2J at 9"
)


def _status(relation: RelationshipReport) -> StatusReport:
    return StatusReport(host="b", host_id="b" * 32, version="0.1.0", now=NOW, relationships=(relation,))


def _report(*damages: Damage) -> ScrubReport:
    return ScrubReport(
        vm=VM_ID, name="web", points=(OLD, NEW), read_bytes=5 << 20, seconds=2.0, damages=damages,
        damaged=len(damages), newest_good=NEW, remarks=("disk vdb stands on device /dev/vg/x",),
    )  # fmt: skip


def test_a_scrub_without_findings_says_what_was_read_and_what_could_not_be(program: Program, agent: SmallAgent) -> None:
    agent.scrubs.report = _report()
    ran = program("scrub", "web")
    assert ran.code == 0
    assert "nothing is wrong (2 points, 5.0 MiB read" in ran.out
    assert "not checked: disk vdb" in ran.out
    assert agent.asked == [("scrub", "web", None)]


def test_damage_makes_the_exit_code_11_and_names_the_place(program: Program, agent: SmallAgent) -> None:
    agent.scrubs.report = _report(DAMAGE)
    ran = program("scrub", "web", "--point", OLD)
    assert ran.code == 11
    assert f"point {OLD}, disk vda, bytes 65536 to 69632: patch in vda.qcow2" in ran.out.replace("\n", " ")
    assert f"newest good point is {NEW}" in ran.out
    assert "\x1b" not in ran.out
    ran = program("scrub", "web", "--json")
    assert (ran.code, ran.document["scrubbed"]["damages"][0]["guest_offset"]) == (11, 65536)
    assert agent.asked[0] == ("scrub", "web", OLD)


def test_a_scrub_need_not_be_waited_for(program: Program) -> None:
    ran = program("scrub", "web", "--no-wait")
    assert ran.code == 0
    assert "began" in ran.out


def test_a_damaged_point_is_used_only_when_a_person_says_so(program: Program, agent: SmallAgent) -> None:
    assert program("failover", "web", "--point", OLD, "--even-damaged", "--yes").code == 0
    assert ("failover", "web", OLD, "even damaged") in agent.asked
    assert program("failover", "web", "--test", "--even-damaged", "--yes").code == 0
    assert ("plan_test", "web", None, None, "even damaged") in agent.asked
    assert program("failover", "web", "--even-damaged", "--dry-run").code == 0
    assert agent.asked[-1] == ("plan_failover", "web", None, "even damaged")
    assert program("failover", "web", "--planned", "--even-damaged").code == 2


def test_damage_is_seen_in_lists_and_in_status() -> None:
    from rich.console import Console  # noqa: PLC0415 - for this test

    console = Console(width=300, record=True, file=None)
    bad = summary(OLD).model_copy(update={"damaged": ("disk vda from byte 0 on",)})
    state = ScrubState(period=604800, oldest=NOW - dt.timedelta(days=2), damaged=(OLD,), newest_good=NEW)
    with console.capture() as seen:
        console.print(points_view(PointsReport(vm=VM_ID, name="web", points=(summary(NEW), bad))))
        console.print(relation_view(_status(relation("web").model_copy(update={"scrub": state}))))
    assert "DAMAGED: disk vda from byte 0 on" in seen.get()
    assert f"1 damaged points, the newest good one is {NEW}" in seen.get()
    assert scrub_pairs(None) == []
    assert scrub_pairs(ScrubState(period=None, oldest=NOW)) == [("scrub", "off")]

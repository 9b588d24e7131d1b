"""The planned failover on the command line: options that go together, the plan before the question, the report."""

import pytest
from api_kit import NEW, SmallAgent
from cli_kit import Program

from vmreplica.model.report import FailoverPlan, PlannedReport, StepTime, TaskReport

pytestmark = pytest.mark.failover


@pytest.fixture
def moved(agent: SmallAgent) -> PlannedReport:
    """What the agent's task comes to."""
    report = PlannedReport(
        plan=agent.plan_planned("web", patience=300, force=False),
        runs_on="backup1",
        shutdown="button",
        reversed=True,
        steps=(StepTime(name="shutdown", seconds=4.0), StepTime(name="start", seconds=0.9)),
        downtime=1.4,
        seconds=7.0,
    )
    agent.asked.clear()
    agent.progress = [TaskReport(id="t1", what="planned failover of web", done=True, planned=report)]
    return report


def test_it_tells_where_the_vm_runs_and_how_long_each_step_took(program: Program, moved: PlannedReport) -> None:
    ran = program("failover", "web", "--planned", "--yes")
    assert ran.code == 0
    assert "web runs on backup1 after 7.0 s; nothing is lost; replication goes the other way already." in ran.out
    assert "off for 1.4 s" in ran.out
    assert "shutdown 4.0 s, start 0.9 s" in ran.out
    ran = program("failover", "web", "--planned", "--yes", "--json")
    assert TaskReport.model_validate_json(ran.out).planned == moved


def test_its_wishes_reach_the_agent(program: Program, agent: SmallAgent, moved: PlannedReport) -> None:
    assert moved.reversed
    program("failover", "web", "--planned", "--yes")
    program("failover", "web", "--planned", "--yes", "--timeout", "90s", "--force")
    ran = program("failover", "web", "--planned", "--dry-run", "--json")
    assert FailoverPlan.model_validate_json(ran.out).kind == "planned"
    asked = [what for what in agent.asked if what[0] != "task"]
    assert asked == [
        ("planned_failover", "web", 300, False),
        ("planned_failover", "web", 90, True),
        ("plan_planned", "web", 300, False),
    ]


def test_nothing_is_moved_without_a_word(program: Program, agent: SmallAgent) -> None:
    ran = program("failover", "web", "--planned")
    assert ran.code == 2
    assert "confirmation-needed" in ran.err
    assert "Nothing is lost." in ran.err
    assert [what[0] for what in agent.asked] == ["plan_planned"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--planned", "--test"), "options-contradict"),
        (("--planned", "--point", NEW), "options-contradict"),
        (("--planned", "--cancel"), "options-contradict"),
        (("--force",), "options-contradict"),
        (("--timeout", "5m"), "options-contradict"),
        (("--planned", "--timeout", "soon"), "timeout-invalid"),
        (("--planned", "--timeout", "2d"), "timeout-invalid"),
        (("--planned", "--timeout", "3s"), "timeout-invalid"),
    ],
)
def test_what_does_not_go_together_is_refused(
    program: Program, agent: SmallAgent, words: tuple[str, ...], code: str
) -> None:
    ran = program("failover", "web", *words, "--yes")
    assert (ran.code, code in ran.err) == (2, True), ran.err
    assert not agent.asked

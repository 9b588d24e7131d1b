"""Other rules of retention that take recovery points away: a person is asked first."""

import pytest
from api_kit import NEW, OLD, SmallAgent
from cli_kit import Program

from vmreplica.model.keeping import Verdict

pytestmark = pytest.mark.points

ENABLE = ("enable", "web", "--to", "backup1", "--no-wait")


def enabled(agent: SmallAgent) -> bool:
    return any(words[0] == "enable" for words in agent.asked)


def test_rules_that_take_points_away_need_a_yes_and_say_how_many_go(program: Program, agent: SmallAgent) -> None:
    ran = program(*ENABLE, "--keep", "1")
    assert (ran.code, "confirmation-needed" in ran.err) == (2, True), ran.err
    assert "1 of 2 recovery points of web" in ran.err
    assert "--yes" in ran.err
    assert not enabled(agent)
    assert program(*ENABLE, "--keep", "1", "--yes").code == 0
    assert enabled(agent)


@pytest.mark.parametrize("rules", [("--keep", "2"), ("--keep", "last=1,within=1h"), ()])
def test_rules_that_keep_what_there_is_ask_nothing(program: Program, agent: SmallAgent, rules: tuple[str, ...]) -> None:
    ran = program(*ENABLE, *rules)
    assert ran.code == 0, ran.err
    assert enabled(agent)


def test_what_goes_by_the_present_rules_too_is_not_asked_about(program: Program, agent: SmallAgent) -> None:
    agent.verdicts = {NEW: Verdict(keep=True, reasons=("newest",)), OLD: Verdict(keep=False, reasons=("no rule",))}
    assert program(*ENABLE, "--keep", "1").code == 0
    assert enabled(agent)


def test_a_vm_that_is_not_protected_yet_has_no_points_to_lose(program: Program, agent: SmallAgent) -> None:
    assert program("enable", "db", "--to", "backup1", "--no-wait", "--keep", "1").code == 0
    assert enabled(agent)

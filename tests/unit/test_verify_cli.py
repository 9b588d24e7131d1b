"""The verify command against a real API, and what verdicts look like in lists, health and the journal."""

import datetime as dt

import pytest
from api_kit import SmallAgent, relation, summary
from cli_kit import Program
from verify_kit import EQUAL, FIXED, POINT, UNPROVEN, WHEN, WRONG, verified

from vmreplica.agent.verify_words import event_of, verify_facts
from vmreplica.model.errors import Conflict
from vmreplica.model.health import Facts, Level, judge
from vmreplica.model.point import Position
from vmreplica.model.states import State
from vmreplica.model.verified import VerifyReport

pytestmark = pytest.mark.points


def test_a_proven_point_is_said_to_be_proven(program: Program, agent: SmallAgent) -> None:
    ran = program("verify", "web")
    assert ran.code == 0
    assert f"point {POINT} is proven" in ran.out
    assert "5.0 MiB compared block by block" in ran.out
    assert agent.asked[0] == ("verify", "web", None, False, None)


def test_a_wrong_point_makes_the_exit_code_11_and_names_places_and_the_remedy(
    program: Program, agent: SmallAgent
) -> None:
    agent.found = WRONG
    ran = program("verify", "web", "--point", POINT, "--rate", "10M")
    assert ran.code == 11
    assert "is WRONG" in ran.out
    assert "wrong: 4096 bytes from byte 9437184 on" in ran.out
    assert "and 2 more places, 48.0 KiB in all" in ran.out
    assert "vmreplica verify web --repair" in ran.out
    assert agent.asked[0] == ("verify", "web", POINT, False, 10 << 20)
    ran = program("verify", "web", "--json")
    assert (ran.code, ran.document["verified"]["verified"]["verdict"]) == (11, "wrong")


def test_a_repaired_point_is_fine_and_says_what_was_sent(program: Program, agent: SmallAgent) -> None:
    agent.found = WRONG
    ran = program("verify", "web", "--repair")
    assert ran.code == 0
    assert f"brought again with point {FIXED}, which is right; 4.0 KiB sent" in ran.out


def test_what_cannot_be_proven_is_no_success_and_says_why(program: Program, agent: SmallAgent) -> None:
    agent.found = UNPROVEN
    ran = program("verify", "web")
    assert ran.code == 11
    assert "cannot be proven" in ran.out
    assert "it carries no" in ran.out
    assert "\x1b" not in ran.out


def test_a_verification_is_cancelled_and_wrong_words_are_refused(program: Program, agent: SmallAgent) -> None:
    assert program("verify", "web", "--cancel", "--json").document == {"result": "ok", "vm": "web"}
    assert agent.asked == [("cancel_verify", "web")]
    assert program("verify", "web", "--cancel", "--repair", "--json").document["error"]["code"] == "options-contradict"
    assert program("verify", "web", "--rate", "fast", "--json").document["error"]["code"] == "rate-invalid"
    assert program("verify", "web", "--point", "newest", "--json").document["error"]["code"] == "request-invalid"
    assert program("verify", "web", "--no-wait").code == 0


def test_points_and_status_show_the_verdict(program: Program, agent: SmallAgent) -> None:
    newest = summary(POINT).model_copy(update={"verified": verified(WRONG)})
    agent.relations["web"] = relation("web", latest=newest, verified=newest.verified)
    assert "verified" in program("points", "web").out
    assert f"wrong, {WHEN.astimezone():%Y-%m-%d %H:%M}: point {POINT}" in program("status", "web").out


def test_health_is_critical_while_the_newest_point_is_wrong() -> None:
    now = WHEN + dt.timedelta(hours=1)
    base = summary(POINT)
    vm = relation("web").vm
    judged = {}
    points: dict[str, dict[str, object]] = {
        "none": {},
        "equal": {"verified": verified(EQUAL)},
        "unproven": {"verified": verified(UNPROVEN)},
        "wrong": {"verified": verified(WRONG)},
        "inherited": {"damaged": ("disk vda from byte 0 on",)},
    }
    for name, changes in points.items():
        newest = base.model_copy(update=changes)
        where = Position(
            vm=vm, state="replicating", epoch=0, latest=newest, incoming=None, free_bytes=1, verified=newest.verified
        )  # fmt: skip
        facts = verify_facts(where, now)
        judged[name] = judge(Facts(state=State.REPLICATING, interval=300, point_age=1.0, verify=facts)).level
    good = dict.fromkeys(("none", "equal", "unproven"), Level.NORMAL)
    assert judged == {**good, "wrong": Level.CRITICAL, "inherited": Level.CRITICAL}
    assert verify_facts(None, now) is None


def test_the_journal_says_what_was_found_and_what_became_of_it() -> None:
    def report(**changes: object) -> VerifyReport:
        fields = {"vm": base.vm, "name": "web", "instant": WHEN, "verified": verified(WRONG), "seconds": 2.0}
        return VerifyReport.model_validate({**fields, **changes})

    base = relation("web")
    failed = Conflict("repair-not-possible", "the line is down")
    assert event_of(None, failed)[:3] == ("repair-not-possible", "verification failed: the line is down", "warning")
    found = event_of(report(), failed)
    assert (found.code, found.severity, found.details["wrong_bytes"]) == ("verified-wrong", "critical", 12 * 4096)
    assert "and 11 more places; it was not repaired: the line is down" in found.text
    again = event_of(report(repaired=verified(EQUAL, FIXED)), None)
    assert (again.code, again.severity, again.details["repaired_by"]) == ("verified-equal", "info", FIXED)

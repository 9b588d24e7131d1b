"""How doctor looks: probes with time limits, directories of this machine, and its report on the command line."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_kit import SmallAgent, serving
from typer.testing import CliRunner

from vmreplica.agent.doctor.host_facts import blocked_at, directory_facts, system_facts
from vmreplica.agent.doctor.judge_host import Needs, judge_directories
from vmreplica.agent.doctor.probing import run_probes
from vmreplica.cli.doctor import PROBLEM_EXIT
from vmreplica.cli.main import make_app
from vmreplica.model.errors import NoSpace
from vmreplica.model.findings import Finding, fine, found
from vmreplica.model.report import DoctorReport

pytestmark = pytest.mark.seeding

NEEDS = Needs(min_free=0, spool_cap=0, scratch_cap=0, cycles=1)


# --- probes


def test_a_probe_that_hangs_is_named_and_the_others_are_told() -> None:
    going_on = threading.Event()

    def hang() -> list[Finding]:
        going_on.wait(30)
        return []

    began = time.monotonic()
    findings = run_probes({"slow": hang, "quick": lambda: [fine("clock", "quick", "good")]}, limit=0.3)
    going_on.set()
    assert time.monotonic() - began < 5
    assert [(one.code, one.subject) for one in findings] == [("check-timed-out", "slow"), ("clock-ok", "quick")]


def test_errors_of_probes_become_findings_with_their_remedy() -> None:
    def refuse() -> list[Finding]:
        raise NoSpace("no-space", "full", hint="make room")

    def vanish() -> list[Finding]:
        raise FileNotFoundError(2, "gone", "/x")

    def fail() -> list[Finding]:
        raise ZeroDivisionError

    findings = run_probes({"a": refuse, "b": vanish, "c": fail}, limit=5)
    assert {one.code for one in findings} == {"check-failed"}
    assert findings[0].remedy == "make room"
    assert "ZeroDivisionError" in findings[2].text


# --- this machine


def test_a_real_directory_is_looked_at(tmp_path: Path) -> None:
    facts = directory_facts("store", tmp_path, None)
    assert facts.exists
    assert facts.writable
    assert facts.free > 0
    assert facts.kind
    assert facts.device == tmp_path.stat().st_dev
    (missing,) = judge_directories([directory_facts("store", tmp_path / "no", None)], NEEDS)
    assert missing.code == "directory-missing"
    (tmp_path / "file").touch()
    assert not directory_facts("store", tmp_path / "file", None).exists


def test_the_first_directory_that_another_user_cannot_pass_is_named(tmp_path: Path) -> None:
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == os.geteuid() and place.is_relative_to("/tmp"):  # noqa: S108 - pytest's own place
            place.chmod(place.stat().st_mode | 0o011)
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0o700)
    stranger = (64055, 64055)
    assert blocked_at(closed / "below", stranger) == closed
    assert blocked_at(closed / "below", (0, 0)) is None
    assert blocked_at(closed / "below", (os.geteuid(), os.getegid())) is None
    closed.chmod(0o711)
    (closed / "below").chmod(0o711)
    assert blocked_at(closed / "below", stranger) is None


def test_this_system_is_looked_at() -> None:
    facts = system_facts()
    assert facts.python >= (3, 11, 0)
    assert facts.libnbd > (1, 0, 0)
    assert facts.clock_synchronised in {True, False, None}


# --- the command line


@pytest.fixture
def agent() -> SmallAgent:
    return SmallAgent()


@pytest.fixture
def socket(agent: SmallAgent, tmp_path: Path) -> Iterator[Path]:
    with serving(agent, tmp_path / "agent.sock"):
        yield tmp_path / "agent.sock"


def run(socket: Path, *words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(make_app(), [*words, "--socket", str(socket)])
    return done.exit_code, done.stdout, done.stderr


def test_a_healthy_host_ends_with_zero_and_a_problem_with_its_own_code(socket: Path, agent: SmallAgent) -> None:
    code, out, _ = run(socket, "doctor")
    assert (code, "it answers" in out) == (0, True)
    agent.findings.append(found("clock-differs", "clock of beta", "it is 1h ahead"))
    assert run(socket, "doctor")[0] == 0, "a warning is no problem"
    agent.findings.append(found("peer-unreachable", "beta\x1b[31m", "no route [bold]", peer="beta"))
    code, out, _ = run(socket, "doctor")
    assert code == PROBLEM_EXIT
    assert "\x1b" not in out
    assert "no route [bold] (peer-unreachable)" in out
    assert "vmreplica peer test beta" in out, "the remedy"
    assert out.index("warning: clock") < out.index("problem: beta"), "problems last"
    assert "1 problem, 1 warning, 1 ok" in out


def test_scripts_get_the_whole_report_and_the_exit_code(socket: Path, agent: SmallAgent) -> None:
    agent.findings = [found("peer-unreachable", "beta", "no route", peer="beta")]
    code, out, _ = run(socket, "doctor", "web", "--no-trial", "--json")
    report = DoctorReport.model_validate_json(out)
    assert (code, report.vm, report.worst) == (PROBLEM_EXIT, "web", "problem")
    assert agent.asked == [("doctor", "web", False)]


@pytest.mark.parametrize("words", [("doctor",), ("doctor", "web")])
def test_json_is_one_document_of_the_report_and_nothing_else(socket: Path, words: tuple[str, ...]) -> None:
    code, out, err = run(socket, *words, "--json")
    assert (code, err) == (0, "")
    DoctorReport.model_validate_json(out)


def test_an_unknown_vm_is_an_ordinary_error(socket: Path) -> None:
    code, _, err = run(socket, "doctor", "wbe")
    assert (code, "vm-unknown" in err) == (3, True)


def test_without_an_agent_and_with_a_wrong_configuration_the_key_is_named(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('[agent]\nstoore = "/srv"\n')
    code, out, _ = run(tmp_path / "none.sock", "doctor", "--config", str(config), "--json")
    report = DoctorReport.model_validate_json(out)
    assert (code, report.agent, report.host) == (PROBLEM_EXIT, False, None)
    found_codes = {one.code: one for one in report.findings}
    assert found_codes.keys() == {"agent-not-running", "configuration-invalid"}
    assert "agent.stoore" in found_codes["configuration-invalid"].text

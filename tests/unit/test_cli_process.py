"""The command line as a process of its own: start-up, terminals, signals, pipes."""

import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_kit import NEW, SmallAgent, serving

pytestmark = pytest.mark.main_job

COMMAND = (sys.executable, "-m", "vmreplica.cli")
#: What costs start-up time and is of no use to a command that looks.
HEAVY = {"libvirt", "nbd", "numpy", "aiohttp", "cryptography", "zstandard", "structlog", "urllib3"}


@pytest.fixture
def agent() -> SmallAgent:
    return SmallAgent()


@pytest.fixture
def socket(agent: SmallAgent, tmp_path: Path) -> Iterator[Path]:
    with serving(agent, tmp_path / "agent.sock"):
        yield tmp_path / "agent.sock"


def environment(socket: Path) -> dict[str, str]:
    return {**os.environ, "VMREPLICA_SOCKET": str(socket), "TERM": "xterm"}


def run(socket: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], env=environment(socket), capture_output=True, text=True, timeout=60, check=False
    )


class Terminal:
    """The command line on a terminal of its own."""

    def __init__(self, socket: Path, *args: str, columns: int = 150) -> None:
        env = {**environment(socket), "COLUMNS": str(columns)}
        self.process, self._fd = _on_terminal([*COMMAND, *args], env)
        self.text = ""

    def expect(self, text: str) -> None:
        """Read until a text has been shown."""
        end = time.monotonic() + 30
        while text not in self.text:
            assert time.monotonic() < end, self.text
            assert self._read(1.0), self.text

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._fd, text.encode())

    def interrupt(self) -> int:
        """Press Ctrl-C, again when nothing happens (as when it came just before a read began); tell the exit code."""
        self.process.send_signal(signal.SIGINT)
        end = time.monotonic() + 5
        while self._read(0.1):
            if time.monotonic() > end:
                self.process.send_signal(signal.SIGINT)
                end += 5
        return self.end()

    def end(self) -> int:
        """Read the rest and tell the exit code."""
        end = time.monotonic() + 60
        while self._read(1.0):
            if time.monotonic() > end:
                self.process.kill()
        os.close(self._fd)
        return self.process.wait(30)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # Linux says EIO when the other side of a terminal is closed
            return False
        self.text += piece.decode(errors="replace")
        return bool(piece)


def _on_terminal(command: list[str], env: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    # Tests that run in the background of a shell have inherited that Ctrl-C is ignored.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        close_fds=True,
    )
    os.close(theirs)
    return process, ours


@pytest.mark.parametrize("args", [("status",), ("status", "--json"), ("--help",), ("version",)])
def test_looking_imports_nothing_heavy(socket: Path, args: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from vmreplica.cli.main import main\n"
        f"sys.argv = ['vmreplica', *{args!r}]\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment(socket), capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(ran.stderr.split())
    assert "typer" in imported
    assert imported & HEAVY == set()
    assert ("rich.console" in imported) is (args == ("status",))


def test_status_costs_little_enough_for_scripts(socket: Path) -> None:
    best = min(_processor_seconds(socket, "status", "--json") for _ in range(4))
    assert best < 0.8  # 0.3 s usually; the bound only catches a start that became heavy


def _processor_seconds(socket: Path, *args: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(socket, *args).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_installed_program_is_the_same(socket: Path) -> None:
    program = Path(sys.executable).with_name("vmreplica")
    ran = subprocess.run(
        [program, "status", "--json"], env=environment(socket), capture_output=True, timeout=60, check=True
    )
    assert json.loads(ran.stdout)["relationships"][0]["name"] == "web"


def test_without_a_terminal_there_are_no_colours_and_nothing_is_wrapped(socket: Path, agent: SmallAgent) -> None:
    name = "x" * 100
    agent.relations[name] = agent.relations["web"].model_copy(update={"name": name})
    out = run(socket, "status").stdout
    assert "\x1b" not in out
    assert name in out


def test_on_a_terminal_health_has_a_colour(socket: Path) -> None:
    terminal = Terminal(socket, "status")
    assert terminal.end() == 0
    assert "\x1b[32mnormal" in terminal.text


def test_on_a_narrow_terminal_a_points_id_stays_in_one_piece(socket: Path) -> None:
    terminal = Terminal(socket, "points", "web", columns=70)
    assert terminal.end() == 0
    assert NEW in terminal.text


@pytest.mark.parametrize(("keys", "code", "done"), [("y\n", 0, True), ("n\n", 4, False), ("\n", 4, False)])
def test_a_failover_asks_naming_the_loss_and_does_what_is_answered(
    *, socket: Path, agent: SmallAgent, keys: str, code: int, done: bool
) -> None:
    terminal = Terminal(socket, "failover", "web")
    terminal.expect("Lost: everything the guest wrote after")
    terminal.expect("Start web here? [y/N]")
    assert ("failover", "web", NEW) not in agent.asked
    terminal.type(keys)
    assert terminal.end() == code
    assert (("failover", "web", NEW) in agent.asked) is done


def test_forgetting_a_peer_asks_first(socket: Path, agent: SmallAgent) -> None:
    terminal = Terminal(socket, "peer", "remove", "backup1")
    terminal.expect("Forget backup1?")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert agent.paired == {}


def test_ctrl_c_at_a_question_does_nothing(socket: Path, agent: SmallAgent) -> None:
    terminal = Terminal(socket, "disable", "web")
    terminal.expect("[y/N]")
    assert terminal.interrupt() != 0
    assert agent.asked == []


def test_a_progress_bar_moves_on_a_terminal_and_ctrl_c_leaves_the_work(socket: Path, agent: SmallAgent) -> None:
    del agent.progress[1:]
    terminal = Terminal(socket, "sync", "web")
    terminal.expect("512.0 MiB of 1.0 GiB")
    terminal.expect("5s left")
    assert terminal.interrupt() == 130
    assert "the work goes on: vmreplica status web" in terminal.text


def test_watching_the_status_goes_on_until_ctrl_c_also_without_the_agent(agent: SmallAgent, tmp_path: Path) -> None:
    with serving(agent, tmp_path / "agent.sock"):
        terminal = Terminal(tmp_path / "agent.sock", "status", "--watch")
        terminal.expect("replicating")
    terminal.expect("agent-not-running")
    with serving(agent, tmp_path / "agent.sock"):
        terminal.text = ""
        terminal.expect("replicating")
        assert terminal.interrupt() == 0


def test_a_line_for_monitoring_is_no_json_and_says_so(socket: Path) -> None:
    ran = run(socket, "status", "--check", "--json")
    assert json.loads(ran.stdout)["error"]["code"] == "check-is-one-line"
    assert ran.returncode == 2
    assert run(socket, "status", "--check").stdout.startswith("VMREPLICA ")


def test_a_reader_that_goes_away_is_no_traceback(socket: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [*COMMAND, "status", "--json"], env=environment(socket), stdout=writing, stderr=subprocess.PIPE, timeout=60,
        check=False,
    )  # fmt: skip
    os.close(writing)
    assert b"Traceback" not in ran.stderr


@pytest.mark.parametrize(("content", "code"), [(None, "config-unreadable"), ("[agent]\nnam = 1", "config-invalid")])
def test_an_agent_with_a_bad_configuration_ends_naming_the_file(tmp_path: Path, content: str | None, code: str) -> None:
    config = tmp_path / "agent.toml"
    if content is not None:
        config.write_text(content)
    ran = run(tmp_path / "agent.sock", "agent", "--config", str(config), "--json")
    assert ran.returncode == 2
    problem = json.loads(ran.stdout)["error"]
    assert problem["code"] == code
    assert str(config) in problem["message"]


def test_an_agent_that_cannot_listen_yet_ends_orderly_and_systemd_tries_it_again(tmp_path: Path) -> None:
    config, state = tmp_path / "agent.toml", tmp_path / "state"
    config.write_text(f"""
[agent]
name = "alpha"
state_dir = "{state}"
store = "{tmp_path / "store"}"
socket = "{tmp_path / "agent.sock"}"
runtime_dir = "{tmp_path / "run"}"
libvirt_uri = "qemu+unix:///system?socket={tmp_path / "none"}"
listen = "192.0.2.1:7432"
""")
    ran = run(tmp_path / "agent.sock", "agent", "--config", str(config), "--json")
    problem = json.loads(ran.stdout)["error"]
    assert (problem["code"], problem["kind"]) == ("cannot-listen", "transient")
    assert not (state / "journal.db-wal").exists(), "the journal was closed"
    unit = (Path(__file__).parents[2] / "packaging" / "vmreplica.service").read_text()
    (prevented,) = [
        line.partition("=")[2] for line in unit.splitlines() if line.startswith("RestartPreventExitStatus=")
    ]
    assert prevented.split() == ["2", "5"]
    assert ran.returncode == 8
    assert "StartLimitIntervalSec=0" in unit.splitlines()

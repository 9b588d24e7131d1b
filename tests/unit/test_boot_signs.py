"""Signs of life: what is taken for one, what is told when there is none, and that a guest or program cannot do harm."""

import datetime as dt
import socket
import sys
from pathlib import Path

import pytest
from point_kit import VM

from vmreplica.failover import signs
from vmreplica.failover.signs import ConsoleSign, ScriptSign, TcpSign, require_usable
from vmreplica.hypervisor.host_memory import host_memory, vm_memory
from vmreplica.lab.waiting import until
from vmreplica.model.boot import BootRecord, BootResult, parse_sign
from vmreplica.model.errors import BadRequest, NotFound
from vmreplica.repository.boot_notes import BootNotes
from vmreplica.repository.layout import Layout
from vmreplica.repository.record import ReplicaRecord

pytestmark = pytest.mark.points


def _log(path: Path) -> signs._Log:
    return signs._Log(path)


@pytest.mark.parametrize(
    ("said", "alive"),
    [
        ("Debian GNU/Linux 12 web ttyS0\r\n\r\nweb login: ", True),
        ("\nweb login:", True),
        ("Last login: Sun Nov 22 03:00:00 on ttyS0\n", False),
        ("SAC>", True),
        ("Kernel panic - not syncing: VFS: Unable to mount root fs\n", False),
        ("", False),
    ],
)
def test_a_login_prompt_is_told_from_other_lines(tmp_path: Path, said: str, alive: bool) -> None:
    file = tmp_path / "console.log"
    sign = ConsoleSign(_log(file), None)
    assert sign.look() is None, "the log may not be there yet"
    file.write_text(said)
    assert (sign.look() is not None) is alive
    if not alive:
        assert " ".join(said.split())[:20] in sign.told()


def test_a_text_is_found_in_pieces_across_a_truncated_log_and_behind_a_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "_LOG_CAP", 1 << 20)
    file = tmp_path / "console.log"
    sign = ConsoleSign(_log(file), "boot complete")
    file.write_bytes(b"x" * 100 + b"boot com")
    assert sign.look() is None
    with file.open("ab") as log:
        log.write(b"plete")
    assert sign.look() == "'boot complete' on the serial console"

    flooded = ConsoleSign(_log(file), "at last")
    with file.open("ab") as log:
        for _ in range(5):
            log.write(b"\x1b[2J\xff noise" * 100_000)
            log.flush()
            assert flooded.look() is None
    assert file.stat().st_size <= 1 << 20, "what the guest floods is thrown away"
    assert "\x1b" not in flooded.told()
    assert len(flooded.told()) < 400
    file.write_bytes(b"anew, and at last")
    assert flooded.look() is not None, "libvirt began the log anew"


def test_a_port_is_alive_when_something_listens_there() -> None:
    known: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        sign = TcpSign(lambda: known, server.getsockname()[1])
        assert sign.look() is None
        assert "libvirt knows no address of it" in sign.told()
        known.append("127.0.0.1")
        assert "accepts connections" in str(sign.look())
    assert sign.look() is None
    assert sign.told() == "nothing accepts connections at 127.0.0.1"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "is-alive"
    path.touch(mode=0o755)
    return path


def _write(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{text}\n")


def test_a_program_is_asked_again_until_it_says_yes(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "_SCRIPT_PAUSE", 0.05)
    _write(program, "import os, sys\nprint('asked for', os.environ['VMREPLICA_VM'])\n"
                    f"sys.exit(not os.path.exists({str(tmp_path / 'up')!r}))")  # fmt: skip
    sign = ScriptSign(str(program), {"VMREPLICA_VM": "web"})
    assert until(lambda: sign.look() is not None or "asked for web" in sign.told(), 20)
    (tmp_path / "up").touch()
    assert until(lambda: sign.look() == f"{program} ended with 0", 20)
    sign.close()


def test_a_program_that_hangs_and_floods_is_killed_with_its_children(program: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    _write(program, "import os, time\n"
                    f"child = os.fork()\nif child: open({str(pid)!r}, 'w').write(str(child))\n"
                    "while True: os.write(1, b'\\x1b[31mnoise ' * 1000)")  # fmt: skip
    sign = ScriptSign(str(program), {})
    assert until(lambda: sign.look() is None and pid.exists() and bool(pid.read_text()), 20)
    assert len(sign.told()) < 600
    assert "\x1b" not in sign.told()
    child = int(pid.read_text())
    sign.close()
    assert until(lambda: not _runs(child), 10)
    sign.close()


def test_a_program_that_cannot_be_run_is_refused_before_and_told_about_later(program: Path) -> None:
    with pytest.raises(BadRequest, match="no program that can be run"):
        require_usable(parse_sign(f"script:{program.parent}"))
    program.chmod(0o644)
    with pytest.raises(BadRequest):
        require_usable(parse_sign(f"script:{program}"))
    sign = ScriptSign(str(program), {})
    assert sign.look() is None
    assert "ermission" in sign.told()
    require_usable(parse_sign("agent"))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_memory_is_read_from_the_host_and_from_a_definition(tmp_path: Path) -> None:
    total, available = host_memory()
    assert 0 < available <= total
    for text, size in (("<memory>1024</memory>", 1 << 20), ("<memory unit='GiB'>2</memory>", 2 << 30)):
        assert vm_memory(f"<domain>{text}</domain>") == size
    for text in ("", "<memory>x</memory>", "<memory unit='parsec'>1</memory>", "<memory unit='KiB'>-1</memory>"):
        with pytest.raises(BadRequest):
            vm_memory(f"<domain>{text}</domain>")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n")
    assert host_memory(meminfo) == (2 << 20, 1 << 20)


def test_a_damaged_note_counts_for_none_and_a_new_test_replaces_it(tmp_path: Path) -> None:
    layout, point = Layout(tmp_path), "20260301T120000Z-00000001"
    layout.make()
    layout.point(point).mkdir()
    (layout.point(point) / "boot-test.json").write_text("{")
    notes = BootNotes(layout)
    with pytest.raises(NotFound):
        notes.picture(None)
    result = BootResult(point=point, started=dt.datetime.now(dt.UTC), verdict="alive", sign="x", picture=True)
    assert notes._of(point) is None
    notes.keep(result, b"png")
    assert BootNotes(layout)._of(point) == result
    assert notes.picture(point) == notes.picture(None) == b"png"
    notes.keep(result.model_copy(update={"picture": False}), None)
    with pytest.raises(NotFound):
        notes.picture(point)
    assert [path.name for path in layout.point(point).iterdir()] == ["boot-test.json"]


def test_records_of_before_boot_tests_can_be_read() -> None:
    old = {"vm": VM, "name": "web", "owner": "ab" * 16, "interval": 60, "keep": 3, "state": "replicating", "epoch": 0}
    assert ReplicaRecord.model_validate(old).boot == BootRecord()

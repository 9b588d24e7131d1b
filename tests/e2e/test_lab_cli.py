"""``vmreplica lab`` as a person and a script use it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmreplica.lab import Lab
from vmreplica.lab.commands import TOOLS, require_root, require_tools
from vmreplica.lab.layout import default_dir, require_short
from vmreplica.lab.probe import runs_under
from vmreplica.model.errors import BadRequest, Refused

pytestmark = pytest.mark.main_job


def lab_command(directory: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "VMREPLICA_LAB": str(directory)}
    argv = [sys.executable, "-m", "vmreplica.cli", "lab", *args]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_lab_is_made_used_broken_mended_and_removed_by_commands(lab_dir: Path) -> None:
    made = lab_command(lab_dir, "up", "--hosts", "2", "--no-agents", "--json")
    assert made.returncode == 0, made.stderr
    assert "starting host b" in made.stderr
    status = json.loads(lab_command(lab_dir, "status", "--json").stdout)
    assert status == json.loads(made.stdout)
    assert [host["name"] for host in status["hosts"]] == ["a", "b"]
    assert {host["up"] for host in status["hosts"]} == {True}

    listed = lab_command(lab_dir, "exec", "b", "--", "ip", "-o", "-4", "address", "show", "to-a")
    assert status["hosts"][1]["address"] in listed.stdout
    assert lab_command(lab_dir, "exec", "a", "--", "sh", "-c", "exit 7").returncode == 7

    ping = ("exec", "a", "--", "busybox", "ping", "-c", "1", "-W", "1", status["hosts"][1]["address"])
    for act, works in ((("cut", "a", "b"), 1), (("slow", "a", "b", "--mbit", "50"), 0), (("heal", "a", "b"), 0)):
        assert json.loads(lab_command(lab_dir, *act, "--json").stdout) == {"result": "ok"}
        assert lab_command(lab_dir, *ping).returncode == works

    assert lab_command(lab_dir, "crash", "b").returncode == 0
    assert "b  DOWN" in lab_command(lab_dir, "status").stdout
    assert lab_command(lab_dir, "start", "b").returncode == 0
    assert lab_command(lab_dir, *ping).returncode == 0

    assert lab_command(lab_dir, "down").stdout == "the lab is gone\n"
    assert not lab_dir.exists()
    assert lab_command(lab_dir, "down").stdout == "there was no lab\n"


def test_a_guest_is_added_and_checked_by_commands(bare_lab: Lab, tmp_path: Path) -> None:
    directory, host = bare_lab.dir, bare_lab.host("b")
    added = lab_command(directory, "guest", "add", "b", "web", "--disks", "2", "--interval-ms", "50", "--json")
    assert added.returncode == 0, added.stderr
    guest = json.loads(added.stdout)
    assert guest["uuid"] == host.guest("web").uuid
    host.guest("web").wait_record(5)
    host.guest("web").stop()

    good = lab_command(directory, "guest", "check", *guest["images"], "--json")
    assert (good.returncode, json.loads(good.stdout)["ok"]) == (0, True)
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(32 * 1024 * 1024))
    bad = lab_command(directory, "guest", "check", guest["images"][0], str(empty))
    assert bad.returncode == 6
    assert "the disks are NOT of one instant" in bad.stdout
    host.guest("web").remove()


@pytest.mark.parametrize(
    ("args", "code", "exit_code"),
    [
        (("status",), "lab-unknown", 3),
        (("crash", "a"), "lab-unknown", 3),
        (("up", "--hosts", "99"), "lab-hosts-invalid", 2),
        (("guest", "check", "nowhere.qcow2"), "lab-image-unknown", 2),
        (("guest", "add", "a", "vm", "--size", "much"), "size-invalid", 2),
    ],
)
def test_wrong_commands_end_with_a_code_and_a_document(
    lab_dir: Path, args: tuple[str, ...], code: str, exit_code: int
) -> None:
    done = lab_command(lab_dir, *args, "--json")
    assert done.returncode == exit_code, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == code


def test_a_directory_with_something_in_it_is_refused_and_left_alone(lab_dir: Path) -> None:
    (lab_dir / "letter").write_text("dear")
    done = lab_command(lab_dir, "up", "--no-agents", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "lab-dir-not-empty"
    assert lab_command(lab_dir, "down").stdout == "there was no lab\n"
    assert (lab_dir / "letter").read_text() == "dear"


def test_a_second_lab_in_one_directory_is_refused_and_the_first_lives_on(bare_lab: Lab) -> None:
    done = lab_command(bare_lab.dir, "up", "--no-agents", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "lab-exists"
    assert json.loads(lab_command(bare_lab.dir, "status", "--json").stdout)["hosts"][0]["up"] is True


def test_without_root_the_lab_says_so() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(Refused) as refused:
            require_root()
    finally:
        os.seteuid(0)
    assert (refused.value.code, refused.value.hint) == ("lab-needs-root", "run the same command with sudo")


def test_missing_programs_are_told_as_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tools()
    monkeypatch.setitem(TOOLS, "a-tool-nobody-has", "its-package")
    with pytest.raises(Refused, match="a-tool-nobody-has") as refused:
        require_tools()
    assert refused.value.hint == "apt-get install its-package"


def test_a_directory_whose_sockets_would_not_fit_is_refused() -> None:
    require_short(Path("/srv/vmreplica-lab"))
    with pytest.raises(BadRequest) as refused:
        require_short(Path("/" + "x" * 90))
    assert refused.value.code == "lab-dir-too-long"


def test_the_lab_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMREPLICA_LAB", "/srv/lab")
    assert default_dir() == Path("/srv/lab")
    monkeypatch.delenv("VMREPLICA_LAB")
    assert str(default_dir()).endswith("/vmreplica-lab")


def test_the_probe_believes_what_runs_and_nothing_else() -> None:
    assert runs_under("tcg")
    assert not runs_under("no-such-accelerator")

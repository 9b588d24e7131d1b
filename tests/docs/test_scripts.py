"""The checks that keep the tree in order find what they are there for."""

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pages import ROOT

pytestmark = pytest.mark.main_job


def _complaints_of(script: str) -> Callable[..., Iterator[str]]:
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Iterator[str]] = module.complaints
    return found


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("see https://" + "py" + "pi.org/project/x", "host of a package index"),
        ("https://files." + "python" + "hosted.org/packages/x.whl", "host of a package index"),
        ("pip install --" + "index-url https://example.org/simple x", "package index option"),
        ("--" + "find-links /srv/wheels", "package index option"),
        ("export PIP_EXTRA_" + "INDEX_URL=x", "package index option"),
        ("open('/" + "work/main/x')", "path of one machine"),
        ("cd /" + "home/me/vmreplica", "path of one machine"),
    ],
)
def test_an_address_of_one_place_is_found(tmp_path: Path, line: str, reason: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"fine\n{line}\n")
    (complaint,) = _complaints_of("check_addresses")(page, tmp_path)
    assert complaint.startswith(f"page.md:2: {reason}")


def test_the_tree_s_own_path_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"store = {tmp_path}/store\n")
    assert [line.split(": ")[1] for line in _complaints_of("check_addresses")(page, tmp_path)] == [
        "path of this very tree"
    ]


def test_ordinary_paths_and_addresses_are_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("/var/lib/vmreplica, docs/work/a, https://example.org/work/a, 192.0.2.10:7432, --indexes\n")
    assert not list(_complaints_of("check_addresses")(page, tmp_path))


def test_long_files_and_functions_are_found_and_docstrings_do_not_count(tmp_path: Path) -> None:
    fine = 'def f() -> None:\n    """Long.\n' + "\n" * 50 + '    """\n' + "    x = 1\n" * 30
    (tmp_path / "fine.py").write_text(fine)
    (tmp_path / "function.py").write_text("def f() -> None:\n" + "    x = 1\n" * 41)
    (tmp_path / "file.py").write_text("x = 1\n" * 401)
    complaints = _complaints_of("check_sizes")
    assert not list(complaints(tmp_path / "fine.py", tmp_path, functions=True))
    assert list(complaints(tmp_path / "function.py", tmp_path, functions=True)) == [
        "function.py:1: f has 42 lines, at most 40"
    ]
    assert not list(complaints(tmp_path / "function.py", tmp_path, functions=False))
    assert list(complaints(tmp_path / "file.py", tmp_path, functions=True)) == ["file.py: 401 lines, at most 400"]


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/check", "scripts/lock", "scripts/install", ".ci/run"])
def test_every_shell_script_can_be_read_and_run(script: str) -> None:
    path = ROOT / script
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o100


def test_an_upgrade_that_fails_leaves_the_installed_program_as_it_was(tmp_path: Path) -> None:
    programs = tmp_path / "opt" / "vmreplica"
    old = programs / "20260101T000000.000000000" / "bin" / "vmreplica"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho old\n")
    old.chmod(0o755)
    (programs / "current").symlink_to(old.parents[1].name)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env = {**plain, "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_" + "INDEX": "1", "DESTDIR": str(tmp_path)}
    ran = subprocess.run(
        ["./install"], cwd=ROOT / "scripts", env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode != 0
    assert "what was installed before is as it was" in ran.stderr
    assert {path.name for path in programs.iterdir()} == {"current", old.parents[1].name}
    assert subprocess.run([programs / "current/bin/vmreplica"], capture_output=True, check=True).stdout == b"old\n"

"""The examples in the documentation do what they say, in a lab of two hosts. CONTRIBUTING.md tells their rules."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pages import ROOT, Example, examples, pages

from vmreplica.lab import GuestSpec, Lab

pytestmark = [pytest.mark.main_job, pytest.mark.timeout(900)]

_HOSTS = {"alpha": "a", "beta": "b"}
_GUIDE = ROOT / "docs" / "guide" / "first-hour.md"
WITH_EXAMPLES = [
    pytest.param(page, id=str(page.relative_to(ROOT)), marks=[] if page == _GUIDE else [pytest.mark.slow])
    for page in pages()
    if "```sh lab\n" in page.read_text()
]


@contextmanager
def _two_paired_hosts() -> Iterator[Lab]:
    folder = tempfile.mkdtemp(prefix="vmr-docs-", dir="/var/tmp")
    lab = Lab.up(Path(folder), hosts=2)
    try:
        lab.pair("a", "b")
        lab.host("a").add_guest(GuestSpec(name="web", disks=2)).wait_booted()
        yield lab
    finally:
        lab.down()


def _run(lab: Lab, example: Example, saved: dict[str, str]) -> str:
    """Run one command where it belongs; the hosts' names in it become the lab's."""
    command = re.sub(r"\b(alpha|beta)\b", lambda name: _HOSTS[name[0]], example.command)
    assignments = "".join(f"{name}='{value}'; " for name, value in saved.items())
    shell = ["bash", "-c", f"PATH={Path(sys.executable).parent}:$PATH; {assignments}{command}"]
    if example.host == "lab":
        environment = {**os.environ, "VMREPLICA_LAB": str(lab.dir)}
        done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=300, check=False)
    else:
        done = lab.host(_HOSTS[example.host]).exec(shell, timeout=300, check=False)
    said = f"{example.host}$ {example.command}\n{done.stdout}{done.stderr}"
    assert done.returncode == example.exit_code, said
    return said


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_every_example_of_a_page_does_what_it_says(page: Path) -> None:
    saved: dict[str, str] = {}
    with _two_paired_hosts() as lab:
        for example in examples(page.read_text()):
            said = _run(lab, example, saved)
            for text in example.expected:
                wanted = re.sub(r"\b(alpha|beta)\b", lambda name: _HOSTS[name[0]], text)
                assert wanted in said.partition("\n")[2], said
            for name, pattern in example.saves:
                match = re.search(pattern, said, re.MULTILINE)
                assert match is not None, f"{pattern!r} is not in: {said}"
                saved[name] = match[1]


def test_the_guide_has_examples() -> None:
    assert any(page.values[0] == _GUIDE for page in WITH_EXAMPLES)

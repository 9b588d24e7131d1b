"""What the end-to-end and fault tests stand on: labs that live for the whole run, and fresh guests for each test.

- ``lab``: two hosts with paired agents, ``a`` and ``b``. One lab serves all tests; after each test hosts are booted,
  lines healed and agents started again, so a test may break whatever it likes.
- ``bare_lab``: two hosts without agents, likewise restored; for tests of the lab itself.
- ``new_guest``: call it as ``new_guest(host, disks=2, ...)`` (arguments of ``GuestSpec``) for a guest that boots and is
  removed after the test. Booting takes several seconds of a core: share one guest among the assertions of a test.
- ``new_blank``: call it as ``new_blank(host, disks=("vda", "vdb"), ...)`` (arguments of ``job_kit.Blank``) for a VM
  without an operating system, for tests that only need disks with known contents: it costs nothing.
- ``lab_dir``: a short directory for a test that makes a lab of its own; whatever is in it is taken down afterwards.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from job_kit import Blank

from vmreplica.lab import Guest, GuestSpec, Host, Lab

# A slow example is no defect on a machine that others use too.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

#: No two guests of a run share a name: a copy that a failover started on b must not stand in the way of the next test.
_numbers = itertools.count(1)


def _make_dir() -> Path:
    # Not pytest's tmp_path: unix sockets below it need short names, images a real disk.
    return Path(tempfile.mkdtemp(prefix="vmr-", dir="/var/tmp"))


def _gone(directory: Path) -> None:
    Lab.remove(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def lab_dir() -> Iterator[Path]:
    directory = _make_dir()
    yield directory
    _gone(directory)


@pytest.fixture(scope="session")
def session_lab() -> Iterator[Lab]:
    directory = _make_dir()
    try:
        lab = Lab.up(directory, hosts=2)
        lab.pair("a", "b")
        yield lab
    finally:
        _gone(directory)


@pytest.fixture(scope="session")
def session_bare_lab() -> Iterator[Lab]:
    directory = _make_dir()
    try:
        yield Lab.up(directory, hosts=2, agents=False)
    finally:
        _gone(directory)


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    yield session_lab
    session_lab.restore()


@pytest.fixture
def bare_lab(session_bare_lab: Lab) -> Iterator[Lab]:
    yield session_bare_lab
    session_bare_lab.restore()


@pytest.fixture
def new_guest() -> Iterator[Callable[..., Guest]]:
    made: list[Guest] = []

    def make(host: Host, **spec: Any) -> Guest:
        spec.setdefault("name", f"vm{next(_numbers)}")
        made.append(host.add_guest(GuestSpec(**spec)))
        return made[-1]

    yield make
    for guest in made:
        _forget(guest)


@pytest.fixture
def new_blank() -> Iterator[Callable[..., Blank]]:
    made: list[Blank] = []

    def make(host: Host, **how: Any) -> Blank:
        start = how.pop("start", True)
        made.append(Blank(host, f"blank{next(_numbers)}", **how))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for blank in made:
        _forget(blank)


def _forget(guest: Guest | Blank) -> None:
    """Remove a guest, and its copy wherever a failover started one."""
    lab = Lab.open(guest.host.layout.lab)
    for host in lab.hosts:
        if not host.up:
            lab.start(host.name)
        host.virsh("destroy", guest.name, check=False)
        host.virsh("undefine", guest.name, "--checkpoints-metadata", "--nvram", check=False)
    guest.remove()

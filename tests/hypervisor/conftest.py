"""One private libvirtd for all tests here, and small guests in it."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, make_image

from vmreplica.hypervisor import Hypervisor

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    if os.geteuid() != 0:
        pytest.skip("a private libvirtd needs root")
    daemon = PrivateLibvirtd()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def home(libvirtd: PrivateLibvirtd) -> Path:
    """A directory for one test, short enough for sockets."""
    place = libvirtd.home / f"t{next(_numbers)}"
    place.mkdir(mode=0o755)
    return place


@pytest.fixture
def hypervisor(libvirtd: PrivateLibvirtd, home: Path) -> Iterator[Hypervisor]:
    opened = Hypervisor(libvirtd.uri, home / "run", home / "state")
    yield opened
    opened.close()


@pytest.fixture
def new_guest(libvirtd: PrivateLibvirtd, home: Path) -> Iterator[Callable[..., Guest]]:
    """Makes defined guests; they are removed after the test."""
    made: list[Guest] = []

    def make(*targets: str, start: bool = True, devices: str = "") -> Guest:
        name = f"guest{next(_numbers)}"
        disks = {target: make_image(home / f"{name}-{target}.qcow2") for target in targets or ("vda",)}
        guest = Guest(libvirtd, name, disks, devices)
        made.append(guest)
        guest.define()
        if start:
            guest.start()
        return guest

    yield make
    for guest in made:
        guest.remove()


@pytest.fixture
def guest(new_guest: Callable[..., Guest]) -> Guest:
    """A paused guest with two disks, vda and vdb."""
    return new_guest("vda", "vdb")

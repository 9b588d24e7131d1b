"""Small file systems that become full under the spool, the scratch space and the store, in the middle of the work.

Replication pauses and says why and where; the guest notices nothing; when there is room it goes on by itself, and no
point is torn.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from job_kit import (
    Blank,
    Document,
    check_point,
    cycles,
    enable,
    images,
    inside,
    points,
    reasons,
    relation,
    same_content,
    wait_reason,
)

from vmreplica.lab import Guest, Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import MiB

pytestmark = pytest.mark.main_job


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A small file system of a host, mounted where its agent keeps something."""

    host: Host
    place: Path

    def fill(self, leave: int) -> None:
        """Take all room but so many bytes; with 0, until the kernel says that there is no more."""
        stat = os.statvfs(inside(self.host, self.place))
        size = stat.f_bavail * stat.f_frsize - leave + (MiB if leave == 0 else 0)
        self.host.exec(["sh", "-c", f"head -c {size} /dev/zero > '{self.place}/filler'"], check=leave != 0)

    def make_room(self) -> None:
        """Undo ``fill``."""
        inside(self.host, self.place / "filler").unlink()


SmallDiskFor = Callable[..., SmallDisk]


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[SmallDiskFor]:
    """Mounts a file system of a few MiB at a place of a host, and sets limits of its agent; undone after the test."""
    done: list[tuple[Host, Path, str]] = []

    def mount(host: Host, place: Path, size: int, **limits: str | int) -> SmallDisk:
        config = host.layout.agent_config
        done.append((host, place, config.read_text()))
        host.stop_agent()
        place.mkdir(parents=True, exist_ok=True)
        host.exec(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(place)])
        lines = [
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in limits.items()
        ]
        config.write_text("\n".join([config.read_text(), "[limits]", *lines, ""]))
        host.start_agent()
        return SmallDisk(host, place)

    yield mount
    lab.restore()
    for host, place, config in done:
        host.stop_agent()
        host.exec(["umount", "--lazy", str(place)])
        host.layout.agent_config.write_text(config)


@pytest.fixture
def protected(lab: Lab, writer: Guest) -> Iterator[Callable[[], None]]:
    """Protects the writing guest; undone after the test, while the small file systems are still there."""

    def protect() -> None:
        enable(lab.host("a"), writer.name)

    yield protect
    lab.restore()
    lab.host("a").vmreplica("disable", writer.name, "--delete-copy", "--yes")


def _expect_an_untroubled_guest(guest: Guest, since: int) -> None:
    """The guest goes on writing, and neither it nor QEMU has met an error."""
    guest.wait_record((guest.last_seen() or 0) + 20)
    assert "write failed" not in guest.said()[since:]
    assert guest.host.virsh("domstate", guest.name).stdout.strip() == "running"
    assert guest.host.virsh("domblkerror", guest.name).stdout.strip() in {"", "No errors found"}


def _expect_whole_points(lab: Lab, guest: Guest) -> None:
    found = points(lab.host("b"), guest.name)
    last = [check_point(lab.host("b"), guest.uuid, point["point"]).last for point in found]
    assert last == sorted(last)


def _expect_it_goes_on(lab: Lab, vm: str) -> None:
    a = lab.host("a")
    count = len(cycles(a, vm))
    assert until(lambda: len(cycles(a, vm)) >= count + 2, 120), a.ask("history", vm)
    assert {"no-space", "scratch-full", "spool-full", "replica-complains"}.isdisjoint(reasons(a, vm))


@dataclass(frozen=True, slots=True)
class Filling:
    """A file system of so many bytes, filled but for so many bytes; the agent wants ``min_free`` of them free."""

    side: str
    what: str
    size: int
    min_free: int
    leave: int

    def place(self, host: Host) -> Path:
        """Tell where it is mounted."""
        layout = host.layout
        return {"spool": layout.state_dir / "spool", "scratch": layout.runtime_dir, "store": layout.store}[self.what]


@pytest.mark.parametrize(
    "filling",
    [
        pytest.param(Filling("a", "spool", 16 * MiB, 0, 0), id="spool-to-the-last-byte"),
        pytest.param(Filling("a", "scratch", 96 * MiB, 8 * MiB, 6 * MiB), id="scratch-to-the-reserve"),
        pytest.param(Filling("b", "store", 96 * MiB, 0, 0), id="store-to-the-last-byte"),
        pytest.param(
            Filling("b", "store", 96 * MiB, 8 * MiB, 6 * MiB), id="store-to-the-reserve", marks=pytest.mark.slow
        ),
    ],
)
def test_replication_pauses_at_a_full_file_system_and_goes_on_by_itself(
    lab: Lab, writer: Guest, small_disk: SmallDiskFor, protected: Callable[[], None], filling: Filling
) -> None:
    host, since = lab.host(filling.side), len(writer.said())
    place = filling.place(host)
    small = small_disk(host, place, filling.size, min_free=filling.min_free)
    protected()
    small.fill(filling.leave)
    reason = wait_reason(lab.host("a"), writer.name, "no-space")
    assert str(place) in reason["hint"], "it is said where room is needed"
    assert reason["level"] == "warning"
    assert relation(lab.host("a"), writer.name)["state"] == "replicating"
    _expect_an_untroubled_guest(writer, since)
    small.make_room()
    _expect_it_goes_on(lab, writer.name)
    _expect_an_untroubled_guest(writer, since)
    _expect_whole_points(lab, writer)


def test_a_backup_job_is_given_up_before_its_scratch_space_is_full(
    lab: Lab, writer: Guest, small_disk: SmallDiskFor, protected: Callable[[], None]
) -> None:
    a, since = lab.host("a"), len(writer.said())
    scratch = small_disk(a, a.layout.runtime_dir, 96 * MiB, min_free=8 * MiB, spool_cap=MiB)
    # The line is so slow that reading waits for the spool: the job goes on and on while the guest overwrites.
    lab.slow("a", "b", mbit=4)
    begun = a.ask("status")["now"]
    a.ask("enable", writer.name, "--to", "b", "--every", "5s", "--no-wait")
    assert until(lambda: "scratch" in _job(a, writer), 60), "the job runs"
    scratch.fill(3 * MiB)
    # The next cycle says no-space soon, since it may not even begin.
    cycle = _wait_failure(a, writer, "scratch-full", begun)
    assert str(a.layout.runtime_dir) in cycle["error"]
    assert _job(a, writer) == "", "the guest writes without copies being made before"
    assert a.virsh("checkpoint-list", writer.name, "--name").stdout.split() == []
    _expect_an_untroubled_guest(writer, since)
    lab.heal("a", "b")
    scratch.make_room()
    _expect_it_goes_on(lab, writer.name)
    _expect_whole_points(lab, writer)
    protected()


@pytest.mark.slow
def test_a_backup_job_is_given_up_at_the_cap_of_its_scratch_space(
    lab: Lab, filled: Blank, small_disk: SmallDiskFor
) -> None:
    a, b = lab.host("a"), lab.host("b")
    small_disk(a, a.layout.runtime_dir, 96 * MiB, min_free=8 * MiB, spool_cap=MiB, scratch_cap=4 * MiB)
    lab.slow("a", "b", mbit=8)
    begun = a.ask("status")["now"]
    a.ask("enable", filled.name, "--to", "b", "--every", "24h", "--no-wait")
    assert until(lambda: "scratch" in _job(a, filled), 60), "the job runs"
    given_up = _job(a, filled)
    filled.write("vda", "56M", "8M", 1)
    assert "limits.scratch_cap" in _wait_failure(a, filled, "scratch-full", begun)["hint"]
    assert _job(a, filled) != given_up, "none runs, or the next one"
    lab.heal("a", "b")
    assert until(lambda: relation(a, filled.name)["points"] == 1, 120), "it goes on by itself"
    (point,) = points(b, filled.name)
    for target, copy in zip(filled.images, images(b, filled.uuid, point["point"]), strict=True):
        assert same_content(filled.images[target], copy)
    a.ask("disable", filled.name, "--delete-copy", "--yes")


def _wait_failure(host: Host, guest: Guest | Blank, code: str, since: str) -> Document:
    """Wait until a cycle that began since a moment failed with an error; gives what the history says about it."""

    def failed() -> list[Document]:
        recent = [cycle for cycle in host.ask("history", guest.name)["cycles"] if cycle["started"] > since]
        return [cycle for cycle in recent if cycle["error_code"] == code]

    assert until(lambda: bool(failed()), 90), host.ask("history", guest.name)
    return failed()[0]


def _job(host: Host, guest: Guest | Blank) -> str:
    return host.virsh("backup-dumpxml", guest.name, check=False).stdout.strip()


def test_a_first_copy_larger_than_the_spool_s_file_system_passes_through_it(
    lab: Lab, filled: Blank, small_disk: SmallDiskFor
) -> None:
    a, b = lab.host("a"), lab.host("b")
    spool = small_disk(a, a.layout.state_dir / "spool", 20 * MiB, min_free=MiB)
    result = enable(a, filled.name, every="24h")["result"]
    assert result["wire_bytes"] > 20 * MiB
    assert inside(spool.host, spool.place / "boot_id").exists(), "that is where the spool is"
    for target, copy in zip(filled.images, images(b, filled.uuid, result["point"]), strict=True):
        assert same_content(filled.images[target], copy)
    a.ask("disable", filled.name, "--delete-copy", "--yes")

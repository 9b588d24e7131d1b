"""The main job with a real guest: initial replication, deltas, one instant, equal bytes; off, on, rebooted."""

import datetime as dt
import itertools

import pytest
from job_kit import (
    NewGuest,
    check_point,
    cycles,
    enable,
    images,
    points,
    reasons,
    relation,
    same_content,
    wait_cycles,
    wait_healthy,
    wait_reason,
)

from vmreplica.lab import Guest, Lab
from vmreplica.model.units import MiB

pytestmark = pytest.mark.main_job

_INTERVAL = 5


def test_a_running_vm_is_copied_and_each_point_is_of_one_instant(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2, interval_ms=100)
    guest.wait_record(3)

    task = enable(a, guest.name)
    assert task["done"]
    assert task["result"]["kind"] == "initial"
    assert task["result"]["outcome"] == "published"
    published = wait_cycles(a, guest.name, 4)
    assert [cycle["kind"] for cycle in published[1:]] == ["delta"] * (len(published) - 1)
    assert all(0 < cycle["guest_bytes"] < 16 * MiB for cycle in published[1:])

    found = points(b, guest.name)[:4]
    _expect_a_chain(found)
    last = [check_point(b, guest.uuid, point["point"]).last for point in found]
    assert last == sorted(set(last)), "each point holds more records than the one before"
    assert last[0] >= 3
    _expect_reports(lab, guest)
    _expect_equal_bytes_when_paused(lab, guest)


def _expect_a_chain(found: list[dict[str, object]]) -> None:
    assert [point["kind"] for point in found] == ["initial", "delta", "delta", "delta"]
    assert [point["parent"] for point in found] == [None, *(point["point"] for point in found[:-1])]
    instants = [dt.datetime.fromisoformat(str(point["instant"])) for point in found]
    gaps = [later - earlier for earlier, later in itertools.pairwise(instants)]
    assert all(gap > dt.timedelta(seconds=_INTERVAL - 1.5) for gap in gaps), gaps


def _expect_reports(lab: Lab, guest: Guest) -> None:
    """What both sides tell about the same relationship fits together."""
    wait_healthy(lab.host("a"), guest.name)
    here, there = relation(lab.host("a"), guest.name), relation(lab.host("b"), guest.name)
    assert (here["role"], here["peer"], there["role"], there["peer"]) == ("primary", "b", "replica", "a")
    assert here["state"] == there["state"] == "replicating"
    assert (here["vm"], here["interval"], here["keep"]) == (there["vm"], there["interval"], there["keep"])
    assert here["points"] >= 4
    assert 0 <= here["point_age"] < 60
    assert points(lab.host("a"), guest.name)[0] == points(lab.host("b"), guest.name)[0]


def _expect_equal_bytes_when_paused(lab: Lab, guest: Guest) -> None:
    a, b = lab.host("a"), lab.host("b")
    a.virsh("suspend", guest.name)
    point = a.ask("sync", guest.name)["result"]["point"]
    copies = images(b, guest.uuid, point)
    assert len(copies) == len(guest.images) == 2
    for original, copy in zip(guest.images, copies, strict=True):
        assert same_content(original, copy)
    a.virsh("resume", guest.name)
    before = guest.last_seen() or 0
    guest.wait_record(before + 20)
    a.ask("sync", guest.name)
    assert not same_content(guest.images[0], copies[0]), "the comparison can tell a difference"


def test_a_vm_that_was_off_or_rebooted_goes_on_by_deltas(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=1)
    guest.wait_record(2)
    enable(a, guest.name)
    wait_cycles(a, guest.name, 2)

    guest.stop()
    off = wait_reason(a, guest.name, "vm-off")
    assert "start the VM" in off["hint"]
    assert cycles(a, guest.name)[-1]["reason"] == "the VM is off: its last point"
    assert "failed" not in {cycle["outcome"] for cycle in a.ask("history", guest.name)["cycles"][:1]}
    _start_and_expect_a_delta(lab, guest)

    heard = len(guest.said())
    a.virsh("reset", guest.name)
    guest.wait_booted(after=heard)
    a.ask("sync", guest.name)
    assert {cycle["kind"] for cycle in cycles(a, guest.name)[1:]} == {"delta"}
    assert "vm-off" not in reasons(a, guest.name)
    newest = points(b, guest.name)[-1]
    assert check_point(b, guest.uuid, newest["point"]).last >= 2


def _start_and_expect_a_delta(lab: Lab, guest: Guest) -> None:
    a = lab.host("a")
    count, heard = len(cycles(a, guest.name)), len(guest.said())
    guest.start()
    assert wait_cycles(a, guest.name, count + 1)[count]["kind"] == "delta"
    found = guest.wait_booted(after=heard)
    assert found >= 2

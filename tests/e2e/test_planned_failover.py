"""Planned failover: nothing is lost, one side or none runs at each moment, and every way out leads back or forward."""

import json
from typing import Any

import pytest
from job_kit import (
    NewGuest,
    check_point,
    enable,
    points,
    relation,
)

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.failover


def running(host: Host, name: str) -> bool:
    """Tell whether a VM runs on a host."""
    return name in host.virsh("list", "--name").stdout.split()


def move(host: Host, name: str, *options: str) -> dict[str, Any]:
    """Do a planned failover; gives its report."""
    planned: dict[str, Any] = host.ask("failover", name, "--planned", "--yes", *options, timeout=300)["planned"]
    return planned


def test_a_writing_guest_moves_with_its_last_record(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2)
    guest.wait_record(3)
    enable(a, guest.name)
    vm = guest.uuid
    plan = b.ask("failover", guest.name, "--planned", "--dry-run")
    assert [step["name"] for step in plan["steps"]] == ["delta", "shutdown", "final", "prepared", "start", "reverse"]
    assert (plan["loses_seconds"], plan["loses_bytes"], len(plan["after"])) == (0.0, 0, 2)
    assert running(a, guest.name), "a plan touches nothing"

    report = move(b, guest.name)
    print(f"planned failover: {json.dumps(report['steps'])}, downtime {report['downtime']:.2f} s")  # noqa: T201
    assert (report["shutdown"], report["runs_on"]) == ("button", "b")
    assert "power button" in guest.said()
    last = guest.check().last
    assert check_point(a, vm, report["plan"]["point"]).last == last, "the last record is there"
    assert b.wait_domain_alive(guest.name) > last
    assert not running(a, guest.name)
    assert report["reversed"]
    assert guest.name not in a.guest_names(), "nothing on the old primary can start it by accident"
    assert (relation(a, guest.name)["role"], relation(b, guest.name)["role"]) == ("replica", "primary")
    first, *others = points(a, guest.name)
    assert (first["point"], first["kind"], first["wire_bytes"]) == (report["plan"]["point"], "final", 0)
    assert {point["kind"] for point in others} <= {"delta"}, "nothing is compared, nothing is sent again"
    assert until(lambda: relation(b, guest.name)["stands_on"] == 0, 120), "the failover is committed by itself"

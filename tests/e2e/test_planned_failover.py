"""Planned failover: nothing is lost, one side or none runs at each moment, and every way out leads back or forward."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from job_kit import Blank, NewBlank, NewGuest, check_point, enable, points, refusal, relation

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


def test_what_stands_against_it_is_said_before_the_guest_is_touched(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    assert refusal(a, "failover", vm.name, "--planned", "--yes")[1]["code"] == "guest-hears-nothing"
    a.virsh("resume", vm.name)
    code, error = refusal(a, "failover", vm.name, "--planned", "--timeout", "5s", "--yes")
    assert (code, error["code"]) == (5, "guest-does-not-shut-down"), "firmware hears no button"
    assert "as it was before" in error["hint"]
    stranger = Blank(b, f"{vm.name}-stranger", vm=vm.uuid)
    try:
        code, error = refusal(b, "failover", vm.name, "--planned", "--force", "--yes")
        assert (code, error["code"]) == (5, "vm-exists-here"), "also when it is asked for on the replica"
    finally:
        stranger.remove()
    assert refusal(a, "failover", vm.name, "--cancel", "--yes")[1]["code"] == "nothing-to-cancel"
    assert running(a, vm.name)
    assert relation(a, vm.name)["state"] == "replicating"
    assert a.ask("sync", vm.name)["result"]["outcome"] == "published"


def test_it_is_taken_back_when_the_replica_can_be_asked_and_done_another_time(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    vm.write("vda", "1M", "64k", 5)
    b.stop_agent()
    b.start_agent([sys.executable, str(Path(__file__).with_name("killed_failover.py")), "layer"])
    refusal(a, "failover", vm.name, "--planned", "--force", "--yes")
    assert relation(a, vm.name)["state"] == "prepared-for-failover"
    assert not running(a, vm.name)
    assert refusal(a, "sync", vm.name)[1]["code"] == "planned-under-way"
    code, error = refusal(a, "failover", vm.name, "--cancel", "--yes")
    assert (code, error["code"]) == (8, "planned-stuck"), "whether it runs there is not known"
    assert not running(a, vm.name)

    b.start_agent()
    assert until(lambda: running(a, vm.name), 60), "what a person wished is remembered"
    assert until(lambda: relation(a, vm.name)["state"] == "replicating", 60)
    assert not running(b, vm.name)
    report = move(a, vm.name, "--force", "--timeout", "5s")
    assert (report["shutdown"], report["reversed"], running(a, vm.name)) == ("plug", True, False)
    assert running(b, vm.name)

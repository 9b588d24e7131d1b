"""Test failover: a copy runs beside the VM, isolated, replication goes on, no trace is left. And taking back."""

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pytest
from job_kit import (
    Blank,
    NewBlank,
    NewGuest,
    enable,
    inside,
    points,
    refusal,
    relation,
    same_content,
    wait_cycles,
)

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.failover


def test_a_copy_boots_beside_the_running_vm_and_replication_goes_on(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2, network="lan")
    guest.wait_record(3)
    enable(a, guest.name)
    wait_cycles(a, guest.name, 2)

    tested = b.ask("failover", guest.name, "--test")
    name = tested["test"]["name"]
    before = points(b, guest.name)[-1]["point"]
    assert name == f"{guest.name}-test"
    assert tested["test"]["vm"] != guest.uuid
    assert b.wait_domain_alive(name) > 0, "it boots and goes on writing"
    assert guest.name not in b.guest_names(), "only the copy is here"
    assert "user" in b.virsh("domiflist", name).stdout
    (mac,) = [row.split()[4] for row in b.virsh("domiflist", name).stdout.splitlines() if "user" in row]
    assert "down" in b.virsh("domif-getlink", name, mac).stdout, "no cable leads anywhere"
    assert points(b, guest.name)[-1]["point"] > before, "points went on coming while it booted"
    shown = relation(b, guest.name)
    assert shown["state"] == "replicating"
    assert [test["running"] for test in shown["tests"]] == [True]
    assert name in b.vmreplica("status", guest.name).stdout

    told = b.ask("failover", guest.name, "--cancel", "--yes")
    assert told["removed"] == [name]
    _expect_no_trace(b, guest.uuid, guest.name, name)
    report = guest.check()
    assert (report.missing, report.torn) == (0, 0), "the VM never noticed"


def test_several_points_can_be_tested_at_once_and_are_held_and_not_written(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, devices="<interface type='user'><mac address='52:54:00:00:01:01'/></interface>")
    vm.write("vda", "1M", "64k", 1)
    older = enable(a, vm.name, "--keep", "1", every="24h")["result"]["point"]
    kept = tmp_path / "older"
    kept.write_bytes(_image(b, vm, older).read_bytes())
    onto = ("failover", vm.name, "--test", "--point", older, "--network", "isolated")
    assert refusal(b, *onto)[1]["code"] == "confirmation-needed", "that network is a bridge which others may use"
    first = b.ask(*onto, "--yes")["test"]
    vm.write("vda", "1M", "64k", 2)
    a.ask("sync", vm.name)
    second = b.ask("failover", vm.name, "--test", "--for", "2h")["test"]

    assert [first["name"], second["name"]] == [f"{vm.name}-test", f"{vm.name}-test2"]
    assert second["until"] > dt.datetime.now(dt.UTC).isoformat()
    assert "isolated" in b.virsh("domiflist", first["name"]).stdout
    mac = "52:54:00:00:01:01"
    assert "down" in b.virsh("domif-getlink", second["name"], mac).stdout, "QEMU's own way out is shut too"
    assert not same_content(*b.disk_paths(first["name"]), *b.disk_paths(second["name"]))
    assert [len(point["holds"]) for point in points(b, vm.name)] == [1, 1], "more than --keep, while they are tested"
    b.virsh("destroy", second["name"])
    assert {test["running"] for test in relation(b, vm.name)["tests"]} == {True, False}
    code, error = refusal(a, "disable", vm.name, "--delete-copy", "--yes")
    assert (code, error["code"]) == (5, "replica-in-use")

    b.stop_agent()
    b.start_agent()
    assert [len(point["holds"]) for point in points(b, vm.name)] == [1, 1], "held again after a restart"
    assert kept.read_bytes() == _image(b, vm, older).read_bytes(), "the point itself is not written"
    b.ask("failover", vm.name, "--test", "--cancel")
    _expect_no_trace(b, vm.uuid, vm.name, first["name"], second["name"])
    assert until(lambda: len(points(b, vm.name)) == 1, 30), "retention goes on"
    code, error = refusal(b, "failover", vm.name, "--cancel")
    assert (code, error["code"]) == (5, "nothing-to-cancel")


def test_a_test_that_cannot_be_is_refused_and_leaves_nothing(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    assert _refused(b, vm, "--network", "none-such") == (3, "network-unknown")
    assert _refused(b, vm, "--point", "20200101T000000Z-00000000") == (3, "point-unknown")
    assert _refused(b, vm, "--for", "soon") == (2, "lifetime-invalid")
    assert _refused(b, vm, "--for", "1s")[0] == 2
    code, error = refusal(b, "failover", vm.name, "--network", "isolated")
    assert (code, error["code"]) == (2, "options-contradict")
    plan = b.ask("failover", vm.name, "--test", "--dry-run")
    assert [step["name"] for step in plan["steps"]] == ["hold", "layer", "define", "start"]
    assert plan["loses_seconds"] == 0
    _expect_no_trace(b, vm.uuid, vm.name, f"{vm.name}-test")


def test_a_test_killed_at_any_step_leaves_nothing_or_runs(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    for step in ("record", "layer", "define", "start", "started"):
        b.stop_agent()
        b.start_agent([sys.executable, str(Path(__file__).with_name("killed_failover.py")), step])
        assert b.vmreplica("failover", vm.name, "--test", check=False).returncode == 8, "the agent died in it"
        b.start_agent()
        assert until(lambda: relation(b, vm.name)["tests"] == [], 30), step
        _expect_no_trace(b, vm.uuid, vm.name, f"{vm.name}-test")
    assert b.ask("failover", vm.name, "--test")["test"]["running"]
    b.ask("failover", vm.name, "--test", "--cancel")


def test_a_failover_is_taken_back_and_another_point_is_tried(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "1M", "64k", 1)
    older = enable(a, vm.name, every="24h")["result"]["point"]
    vm.write("vda", "1M", "64k", 2)
    newer = a.ask("sync", vm.name)["result"]["point"]
    vm.stop()
    b.ask("failover", vm.name, "--yes")
    plan = b.ask("failover", vm.name, "--cancel", "--dry-run")
    assert (plan["kind"], plan["point"], relation(b, vm.name)["state"]) == ("cancel", newer, "failed-over")
    assert plan["loses_seconds"] > 0
    layer = inside(b, b.layout.store / vm.uuid / "run" / "vda.qcow2")
    assert plan["loses_bytes"] == layer.stat().st_blocks * 512
    first = b.ask("failover", vm.name, "--cancel", "--yes")
    assert (first["kind"], first["removed"], first["state"]) == ("unplanned", [vm.name], "replicating")
    assert vm.name not in b.guest_names()
    assert not inside(b, b.layout.store / vm.uuid / "run").exists()
    vm.start()
    vm.write("vda", "2M", "64k", 3)
    latest = a.ask("sync", vm.name)["result"]
    assert latest["kind"] == "delta", "the primary goes on where it was"
    assert until(lambda: relation(a, vm.name)["epoch"] == relation(b, vm.name)["epoch"] == 1, 30)
    vm.stop()
    again = b.ask("failover", vm.name, "--yes", "--point", older)
    assert again["plan"]["point"] == older
    assert again["plan"]["newer_points"] == len(points(b, vm.name)) - 1
    assert relation(b, vm.name)["epoch"] == 2
    kept = [point["point"] for point in points(b, vm.name)]
    assert kept[:2] == [older, newer]
    assert latest["point"] in kept


def test_a_failover_that_could_not_be_taken_back_is_taken_back_by_the_next_attempt(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    vm.stop()
    b.stop_agent()
    b.start_agent([sys.executable, str(Path(__file__).with_name("stumbling_failover.py"))])
    for by_itself in (False, True):
        b.ask("failover", vm.name, "--yes")
        assert refusal(b, "failover", vm.name, "--cancel", "--yes")[1]["code"] == "libvirt-timeout"
        if not by_itself:
            asked = b.vmreplica("failover", vm.name, "--cancel", "--yes", check=False)
            assert asked.returncode in {0, 5}, "done, or the agent itself was quicker and nothing is left to cancel"
            assert relation(b, vm.name)["state"] == "replicating"
        assert until(lambda: relation(b, vm.name)["state"] == "replicating", 30)
        _expect_no_trace(b, vm.uuid, vm.name, vm.name)
    vm.start()
    assert a.ask("sync", vm.name)["result"]["kind"] == "delta"
    b.stop_agent()
    b.start_agent()


def _refused(b: Host, vm: Blank, *options: str) -> tuple[int, str]:
    code, error = refusal(b, "failover", vm.name, "--test", *options)
    return code, error["code"]


def _image(b: Host, vm: Blank, point: str) -> Path:
    return inside(b, b.layout.store / vm.uuid / "points" / point / "vda.qcow2")


def _expect_no_trace(b: Host, vm: str, name: str, *copies: str) -> None:
    store = inside(b, b.layout.store / vm)
    assert not set(copies) & set(b.guest_names())
    assert not list((store / "tests").glob("*"))
    assert not list((store / "holds").glob("*"))
    assert relation(b, name)["tests"] == []
    holds: list[Any] = [point["holds"] for point in points(b, name)]
    assert not any(holds)

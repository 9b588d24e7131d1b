"""Unplanned failover: the primary is gone, the copy starts elsewhere; refusals; the old primary comes back."""

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pytest
from job_kit import (
    Blank,
    NewBlank,
    NewGuest,
    at,
    check_point,
    enable,
    inside,
    points,
    qemu_img,
    refusal,
    relation,
    same_content,
    switch_off,
    tracked,
    tracking,
    wait_cycles,
    wait_reason,
)

from vmreplica.lab import Guest, Host, Lab
from vmreplica.lab.records import last_record_finished_before
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.failover

#: A guest's clock has whole seconds and may be one off.
_CLOCK_SLACK = 2.0


def test_when_the_primary_dies_its_copy_goes_on_and_the_old_one_is_told(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2, network="lan")
    guest.wait_record(3)
    enable(a, guest.name)
    vm = guest.uuid
    wait_cycles(a, guest.name, 3)
    b.ask("networks", guest.name, "--map", "lan=isolated")
    _expect_refusals_while_it_runs(b, guest)

    lab.crash("a")
    plan = _dry_run(b, guest)
    report = b.ask("failover", guest.name, "--yes")
    assert report["started"]
    assert report["state"] == "failed-over"
    assert report["plan"]["point"] == plan["point"] == points(b, guest.name)[-1]["point"]
    alive = b.wait_domain_alive(guest.name)
    assert alive > _expect_whole(b, guest, vm, report["plan"]), "it goes on where the point ends"
    assert "isolated" in b.virsh("domiflist", guest.name).stdout
    assert relation(b, guest.name)["epoch"] == 1
    code, error = refusal(b, "failover", guest.name, "--yes")
    assert (code, error["code"]) == (5, "state-forbids"), "a second failover would start it twice"
    _expect_the_old_primary_to_be_told(lab, guest, vm)


def _expect_refusals_while_it_runs(b: Host, guest: Guest) -> None:
    """Nothing is done and nothing is changed by a failover that is refused, however often."""
    before = relation(b, guest.name)
    for _ in range(2):
        code, error = refusal(b, "failover", guest.name, "--yes")
        assert (code, error["code"]) == (5, "primary-still-runs")
    assert refusal(b, "failover", guest.name, "--dry-run")[1]["code"] == "primary-still-runs"
    assert guest.name not in b.guest_names()
    assert [relation(b, guest.name)[key] for key in ("state", "epoch")] == [before["state"], before["epoch"]]
    assert until(lambda: relation(b, guest.name)["points"] > before["points"], 60), "replication goes on"


def _dry_run(b: Host, guest: Guest) -> dict[str, Any]:
    plan = b.ask("failover", guest.name, "--dry-run")
    assert [step["name"] for step in plan["steps"]] == ["fence", "layer", "define", "start"]
    assert plan["loses_seconds"] > 0
    assert any("does not answer" in warning for warning in plan["warnings"])
    assert guest.name not in b.guest_names()
    assert relation(b, guest.name)["state"] == "replicating"
    return plan


def _expect_whole(b: Host, guest: Guest, vm: str, plan: dict[str, Any]) -> int:
    """Expect all records up to the point's instant in the point; tell the last one."""
    report = check_point(b, vm, plan["point"])
    instant = dt.datetime.fromisoformat(plan["instant"]).timestamp()
    promised = last_record_finished_before(guest.images[0], instant - _CLOCK_SLACK)
    assert 0 < promised <= report.last <= guest.check().last
    return report.last


def _expect_the_old_primary_to_be_told(lab: Lab, guest: Guest, vm: str) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.start("a")
    told = wait_reason(a, guest.name, "failed-over-elsewhere")
    assert told["level"] == "critical"
    assert "survives" in told["hint"]
    assert relation(a, guest.name)["state"] == "failed-over-elsewhere"
    assert "running" not in a.virsh("domstate", guest.name).stdout, "nobody has started it"
    # Somebody starts it all the same.
    held = [point["point"] for point in points(b, guest.name)]
    assert "was failed over to b" in a.virsh("start", guest.name, check=False).stderr
    assert a.ask("start", guest.name, "--i-am-sure", "--yes")["started"]
    code, error = refusal(a, "sync", guest.name)
    assert (code, error["code"]) == (5, "failed-over-elsewhere")
    code, error = refusal(a, "enable", guest.name, "--to", "b")
    assert code == 5
    assert [point["point"] for point in points(b, guest.name)] == held, "the stale side ships nothing"
    assert not inside(b, b.layout.store / vm / "incoming").exists() or not list(
        inside(b, b.layout.store / vm / "incoming").iterdir()
    )
    assert "failed-over-elsewhere" in {reason["code"] for reason in relation(a, guest.name)["health"]["reasons"]}, (
        "a refused change does not make it look well"
    )


def test_an_older_point_can_be_chosen_and_is_not_written_to(lab: Lab, new_blank: NewBlank, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "1M", "64k", 1)
    older = enable(a, vm.name, every="24h")["result"]["point"]
    moment = _keep(vm, tmp_path / "older")
    vm.write("vda", "1M", "64k", 2)
    a.ask("sync", vm.name)
    switch_off(vm)
    code, error = refusal(b, "failover", vm.name, "--yes", "--point", "20200101T000000Z-00000000")
    assert (code, error["code"]) == (3, "point-unknown")
    assert f"vmreplica points {vm.name}" in error["hint"]
    assert refusal(b, "failover", vm.name, "--yes", "--point", "../etc")[0] in {2, 3}

    report = b.ask("failover", vm.name, "--yes", "--point", older)
    assert report["plan"]["newer_points"] == 2, "the delta, and the last point of the VM that went off"
    (layer,) = b.disk_paths(vm.name)
    assert same_content(moment, layer)
    found = points(b, vm.name)
    assert [bool(point["holds"]) for point in found] == [True, False, False], "the point below a running VM is held"
    assert same_content(moment, inside(b, b.layout.store / vm.uuid / "points" / older / "vda.qcow2"))


def test_a_failed_over_copy_is_given_up_only_when_its_vm_is_gone(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    vm.stop()
    b.ask("failover", vm.name, "--yes")
    code, error = refusal(b, "disable", vm.name, "--delete-copy", "--yes")
    assert (code, error["code"]) == (5, "replica-in-use")
    b.virsh("destroy", vm.name)
    b.virsh("undefine", vm.name)
    b.ask("disable", vm.name, "--delete-copy", "--yes")
    assert not inside(b, b.layout.store / vm.uuid).exists()
    assert refusal(b, "points", vm.name)[1]["code"] == "vm-unknown"


def _keep(vm: Blank, kept: Path) -> Path:
    qemu_img("convert", "-U", "-O", "qcow2", str(vm.images["vda"]), str(kept))
    return kept


def test_network_cards_are_attached_as_the_map_says_or_unplugged(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    for bridge in ("br-dmz", "br-lost"):
        a.exec(["ip", "link", "add", bridge, "type", "bridge"], check=False)
    cards = (
        ("52:54:00:00:00:01", "<source network='lan'/>", "network"),
        ("52:54:00:00:00:02", "<source bridge='br-dmz'/>", "bridge"),
        ("52:54:00:00:00:03", "<source bridge='br-lost'/>", "bridge"),
        ("52:54:00:00:00:04", "<source network='isolated'/>", "network"),
    )
    devices = "".join(
        f"<interface type='{kind}'><mac address='{mac}'/>{source}<model type='virtio'/></interface>"
        for mac, source, kind in cards
    )
    vm = new_blank(a, devices=devices)
    enable(a, vm.name, every="24h")
    code, error = refusal(b, "networks", vm.name, "--map", "br-dmz")
    assert (code, error["code"]) == (2, "network-map-invalid")
    b.ask("networks", vm.name, "--map", "br-dmz=bridge:br-isolated", "--map", "isolated=none")
    vm.stop()
    said = b.vmreplica("failover", vm.name, "--yes").stdout
    rows = [line.split() for line in b.virsh("domiflist", vm.name).stdout.splitlines()]
    # Of a card on a network, a running VM shows the network and the kind of its bridge.
    attached = {row[4]: (row[1], row[2]) for row in rows}
    assert attached["52:54:00:00:00:01"][1] == "lan"
    assert attached["52:54:00:00:00:02"] == ("bridge", "br-isolated")
    for mac in ("52:54:00:00:00:03", "52:54:00:00:00:04"):
        assert attached[mac][0] == "user"
        assert "down" in b.virsh("domif-getlink", vm.name, mac, "--config").stdout
    unplugged = " ".join(remark for remark in said.split("! ") if "unplugged" in remark)
    assert "52:54:00:00:00:03" in unplugged
    assert "br-lost" in unplugged
    assert "52:54:00:00:00:04" in unplugged
    assert "52:54:00:00:00:01" not in unplugged


def test_a_failover_killed_before_the_guest_may_have_run_is_undone_and_later_finished(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    switch_off(vm)
    for step in ("fence", "layer", "define", "start", "checkpoint"):
        _kill_at(b, vm.name, step)
        b.start_agent()
        assert until(lambda: relation(b, vm.name)["state"] == "replicating", 30), step
        assert vm.name not in b.guest_names(), step
        assert not inside(b, b.layout.store / vm.uuid / "run").exists(), step
        assert [found["holds"] for found in points(b, vm.name)] == [[], []], step
        assert relation(b, vm.name)["epoch"] == 0

    _kill_at(b, vm.name, "resume")
    assert "paused" in b.virsh("domstate", vm.name).stdout, "it waits for its checkpoint"
    assert tracked(b, vm) == {"vda"}
    b.start_agent()
    _expect_finished(b, vm, epoch=1)
    b.ask("failover", vm.name, "--cancel", "--yes")

    vm.start()
    vm.write("vda", "0", "64k", 1)
    assert a.ask("sync", vm.name)["result"]["kind"] == "delta", "after all that it still receives"
    switch_off(vm)
    _kill_at(b, vm.name, "started")
    assert "running" in b.virsh("domstate", vm.name).stdout
    b.start_agent()
    _expect_finished(b, vm, epoch=2)
    assert refusal(a, "sync", vm.name)[1]["code"] == "failed-over-elsewhere", "the finished failover is in force"


def _expect_finished(b: Host, vm: Blank, *, epoch: int) -> None:
    assert until(lambda: relation(b, vm.name)["state"] == "failed-over", 30)
    assert until(lambda: "running" in b.virsh("domstate", vm.name).stdout, 10)
    assert relation(b, vm.name)["epoch"] == epoch
    held = [bool(found["holds"]) for found in points(b, vm.name)]
    assert held == [False] * (len(held) - 1) + [True]
    assert tracked(b, vm) == {"vda"}


def test_what_the_copy_writes_is_tracked_for_the_way_back(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, disks=("vda", "vdb"))
    enable(a, vm.name, every="24h")
    switch_off(vm)
    report = b.ask("failover", vm.name, "--yes")
    copy = at(b, vm)
    copy.write("vdb", "1M", "64k", 3)
    owner = a.ask("status")["host_id"]
    bitmaps = tracking(b, vm)
    assert {(target, name) for target, name, _bytes in bitmaps} == {
        (target, f"vmreplica-{owner[:8]}-{report['plan']['point']}") for target in ("vda", "vdb")
    }
    assert {target: count for target, _name, count in bitmaps} == {"vda": 0, "vdb": 65536}
    assert "vmreplica" not in b.virsh("checkpoint-list", vm.name).stdout, "nobody else meets it"


def _kill_at(b: Host, vm: str, step: str) -> None:
    """Fail over with an agent that is killed just before a step."""
    b.stop_agent()
    b.start_agent([sys.executable, str(Path(__file__).with_name("killed_failover.py")), step])
    assert b.vmreplica("failover", vm, "--yes", check=False).returncode == 8, "the agent died in the middle of it"

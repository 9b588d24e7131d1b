"""Keeping a failover for good: the chain is folded below the running VM, through crashes of everything around it."""

import contextlib
import sys
from pathlib import Path

import pytest
from job_kit import (
    Blank,
    NewBlank,
    at,
    enable,
    inside,
    points,
    qemu_img,
    refusal,
    relation,
    same_content,
    switch_off,
    tracking,
)

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Unreachable

pytestmark = pytest.mark.failover


def test_a_commit_makes_the_running_vm_independent_of_all_points(lab: Lab, new_blank: NewBlank, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "1M", "64k", 1)
    enable(a, vm.name, every="24h")
    vm.write("vda", "2M", "64k", 2)
    vm.attach("vdb")
    vm.write("vdb", "2M", "64k", 2)
    older = a.ask("sync", vm.name)["result"]["point"]
    vm.write("vda", "3M", "64k", 3)
    switch_off(vm)
    assert refusal(b, "commit", vm.name, "--yes")[1]["code"] == "state-forbids", "there is no failover to keep"
    b.ask("failover", vm.name, "--yes", "--point", older)
    copy = at(b, vm)
    copy.write("vda", "4M", "64k", 4)
    copy.write("vdb", "5M", "192k", 5)
    layers = b.disk_paths(vm.name)
    kept = [_keep(layer, tmp_path / layer.name) for layer in layers]
    _expect_a_plan_that_changes_nothing(b, vm)

    tested = b.ask("failover", vm.name, "--test")["test"]["name"]
    code, error = refusal(b, "commit", vm.name, "--yes")
    assert (code, error["code"]) == (5, "points-held")
    assert tested in error["message"]
    b.ask("failover", vm.name, "--test", "--cancel")
    done = b.ask("commit", vm.name, "--yes")["committed"]

    assert done["state"] == relation(b, vm.name)["state"] == "committed"
    assert done["freed_bytes"] > 0
    assert [Path(image).name for image in done["images"]] == ["vda.qcow2", "vdb.qcow2"]
    assert tracking_of(b, vm) == {"vda": 65536, "vdb": 196608}, "what it wrote is known for the way back"
    _expect_alone(b, vm, kept, done["images"])
    copy.write("vda", "6M", "64k", 6)
    assert not same_content(kept[0], Path(done["images"][0])), "it runs on that very image"
    assert refusal(b, "failover", vm.name, "--cancel", "--yes")[1]["code"] == "nothing-to-cancel"
    assert refusal(b, "disable", vm.name, "--delete-copy", "--yes")[1]["code"] == "replica-in-use"
    again = b.ask("commit", vm.name, "--yes")["committed"]
    assert (again["images"], again["freed_bytes"]) == (done["images"], 0), "it is done already"
    assert refusal(b, "commit", vm.name, "--dry-run")[1]["code"] == "state-forbids"
    _expect_it_to_last(b, vm, done["images"])


def _expect_a_plan_that_changes_nothing(b: Host, vm: Blank) -> None:
    plan = b.ask("commit", vm.name, "--dry-run")
    assert plan == b.ask("failover", vm.name, "--commit", "--dry-run")
    assert [step["name"] for step in plan["steps"]] == ["give-up", "fold", "remove"]
    assert plan["newer_points"] > 0
    assert any("newer" in warning for warning in plan["warnings"])
    assert refusal(b, "commit", vm.name)[1]["code"] == "confirmation-needed"
    assert relation(b, vm.name)["state"] == "failed-over"
    assert len(points(b, vm.name)) > 1


def _expect_alone(b: Host, vm: Blank, kept: list[Path], images: list[str]) -> None:
    """Expect the VM on these images and no others, with what it had before."""
    for image, before in zip(images, kept, strict=True):
        assert same_content(before, inside(b, Path(image)))
    store = inside(b, b.layout.store / vm.uuid)
    assert {path.name for path in store.rglob("*.qcow2")} == {Path(image).name for image in images}
    assert sum(1 for _ in store.rglob("*.qcow2")) == len(images)
    assert points(b, vm.name) == []
    assert not list((store / "holds").glob("*"))


def _expect_it_to_last(b: Host, vm: Blank, images: list[str]) -> None:
    """Expect it to start from those images after it was off, and the agent to find all well."""
    b.virsh("destroy", vm.name)
    for image in images:
        assert "backing file" not in qemu_img("info", str(inside(b, Path(image))))
        assert "in-use" not in qemu_img("info", str(inside(b, Path(image)))), "its bitmaps are sound"
    b.virsh("start", vm.name)
    assert [str(path) for path in b.disk_paths(vm.name)] == images
    b.stop_agent()
    b.start_agent()
    shown = relation(b, vm.name)
    assert shown["state"] == "committed"
    assert [reason["code"] for reason in shown["health"]["reasons"]] == ["not-protected"]


def test_a_commit_goes_on_after_crashes_of_the_agent_libvirt_the_vm_and_the_host(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, disks=("vda", "vdb"))
    vm.write("vda", "1M", "64k", 1)
    enable(a, vm.name, every="24h")
    vm.write("vdb", "2M", "64k", 2)
    switch_off(vm)
    b.ask("failover", vm.name, "--yes")
    at(b, vm).write("vda", "4M", "64k", 4)
    stale = b.virsh("dumpxml", vm.name, "--inactive").stdout
    kept = [_keep(layer, tmp_path / layer.name) for layer in b.disk_paths(vm.name)]

    _killed_before_and_after_the_points_are_given_up(b, vm)
    b.virsh("destroy", vm.name)
    b.start_agent()
    assert until(lambda: "waiting" in (relation(b, vm.name)["progress"] or {"phase": ""})["phase"], 30)
    assert relation(b, vm.name)["state"] == "committing-failover"
    assert points(b, vm.name) == []
    b.stop_agent()
    b.virsh("start", vm.name, "--paused")
    _dies_at(b, "pivot vda")
    b.restart_libvirtd(hard=True)
    for step in ("define vda", "layer vda", "fold vdb"):
        _dies_at(b, step)
    _host_loses_power_before_libvirt_wrote_its_file(b, vm, stale)
    b.virsh("start", vm.name, "--paused")
    _dies_at(b, "remove")
    b.start_agent()
    assert until(lambda: relation(b, vm.name)["state"] == "committed", 30)
    images = [str(path.resolve()) for path in b.disk_paths(vm.name)]
    _expect_alone(b, vm, kept, images)
    _expect_it_to_last(b, vm, images)


def _killed_before_and_after_the_points_are_given_up(b: Host, vm: Blank) -> None:
    b.stop_agent()
    b.start_agent(_agent_killed_at("give-up"))
    assert b.vmreplica("commit", vm.name, "--yes", check=False).returncode == 8
    b.start_agent()
    assert relation(b, vm.name)["state"] == "failed-over", "nothing was given up yet"
    b.stop_agent()
    b.start_agent(_agent_killed_at("fold vda"))
    b.vmreplica("commit", vm.name, "--yes", "--no-wait", check=False)
    assert until(lambda: b.agent_pid is None, 60)


def _host_loses_power_before_libvirt_wrote_its_file(b: Host, vm: Blank, stale: str) -> None:
    b.virsh("destroy", vm.name)
    b.exec(["virsh", "-q", "-c", b.layout.uri, "define", "/dev/stdin"], stdin=stale)
    assert b.virsh("start", vm.name, check=False).returncode != 0, "a stale layer is never started over newer data"
    b.start_agent()
    assert until(lambda: "run/vda" not in b.virsh("domblklist", vm.name, "--inactive").stdout, 30)
    b.stop_agent()


def tracking_of(b: Host, vm: Blank) -> dict[str, int]:
    """Tell how many bytes each disk's recording bitmap has."""
    return {target: count for target, _name, count in tracking(b, vm)}


def _keep(layer: Path, kept: Path) -> Path:
    qemu_img("convert", "-U", "-O", "qcow2", str(layer), str(kept))
    return kept


def _agent_killed_at(step: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("killed_failover.py")), step]


def _dies_at(b: Host, step: str) -> None:
    """Start an agent that goes on by itself, and is killed before a step."""
    with contextlib.suppress(Unreachable):  # it may be dead before it answers
        b.start_agent(_agent_killed_at(step))
    assert until(lambda: b.agent_pid is None, 60), step

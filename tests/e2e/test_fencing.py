"""A VM whose replica was failed over does not start on its old primary, and what is not ours is left alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_kit import Blank, Document, NewBlank, enable, reasons, refusal, relation, switch_off

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.failover


def runs(host: Host, vm: str) -> bool:
    return vm in host.virsh("list", "--name").stdout.split()


def refused(vm: Blank) -> str:
    """Start a VM as anybody would; gives what libvirt says to its refusal."""
    done = vm.host.virsh("start", vm.name, "--paused", check=False)
    assert done.returncode != 0
    assert not runs(vm.host, vm.name)
    return done.stderr


def start(host: Host, vm: str, *options: str) -> Document:
    return host.ask("start", vm, *options)


def autostarts(host: Host, vm: str) -> bool:
    return vm in host.virsh("list", "--all", "--autostart", "--name").stdout.split()


def test_the_worst_day_the_old_primary_comes_back_and_its_vm_does_not_run(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    a.virsh("autostart", vm.name)
    enable(a, vm.name, every="1h")
    assert until(lambda: not autostarts(a, vm.name), 60), "the agent did not take autostart over"
    assert relation(a, vm.name)["autostart"]
    lab.crash("a")
    assert b.ask("failover", vm.name, "--yes")["state"] == "failed-over"

    lab.start("a")
    assert until(lambda: relation(a, vm.name)["state"] == "failed-over-elsewhere", 60)
    assert "was failed over to b" in refused(vm)
    code, error = refusal(a, "start", vm.name)
    assert (code, error["code"]) == (4, "start-refused")

    # Nobody can be asked: what is known stays known, also to the next agent.
    lab.cut("a", "b")
    a.kill_agent()
    assert "was failed over to b" in refused(vm)
    a.start_agent()
    assert "was failed over to b" in refused(vm)
    assert relation(a, vm.name)["state"] == "failed-over-elsewhere"
    log = (a.layout.dir / "libvirt" / "log" / "qemu" / f"{vm.name}.log").read_text()
    assert log.count("starting up") == 1, "it ran, if only for a moment"
    lab.heal("a", "b")

    b.ask("failover", vm.name, "--cancel", "--yes")
    assert start(a, vm.name)["started"]
    assert until(lambda: relation(a, vm.name)["state"] == "replicating", 60)
    a.ask("disable", vm.name, "--yes")
    assert autostarts(a, vm.name), "autostart was not given back"

"""A VM whose replica was failed over does not start on its old primary, and what is not ours is left alone."""

import time

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


def test_a_silent_replica_is_a_no_until_a_person_is_sure_with_an_agent_or_without(
    lab: Lab, new_blank: NewBlank
) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name)
    switch_off(vm)
    assert start(a, vm.name, "--dry-run")["allowed"]
    assert lab.host("b").ask("failover", vm.name, "--dry-run"), "who only asks is not about to start"
    lab.cut("a", "b")
    began = time.monotonic()
    said = refused(vm)
    assert "cannot be asked" in said
    assert f"vmreplica start {vm.name} --i-am-sure" in said
    assert time.monotonic() - began < 10, "libvirt holds the VM's lock meanwhile"
    assert start(a, vm.name, "--i-am-sure")["started"]
    assert runs(a, vm.name)

    vm.stop()
    a.kill_agent()
    assert "agent of this host cannot be asked" in refused(vm)
    code, error = refusal(a, "start", vm.name)
    assert (code, error["code"]) == (8, "agent-not-running")
    assert "--i-am-sure" in error["hint"]
    alone = start(a, vm.name, "--i-am-sure", "--config", str(a.layout.agent_config))
    assert (alone["started"], runs(a, vm.name)) == (True, True)
    vm.stop()
    refused(vm)  # that word was good for one start


@pytest.mark.slow
def test_a_vm_that_starts_with_its_host_waits_for_its_replica_and_then_starts_once(
    lab: Lab, new_blank: NewBlank
) -> None:
    a = lab.host("a")
    vm, other = new_blank(a), new_blank(a)
    other.stop()
    enable(a, vm.name)
    a.ask("autostart", vm.name)
    a.virsh("autostart", other.name)
    lab.crash("b")
    lab.crash("a")
    lab.start("a")
    assert until(lambda: runs(a, other.name), 30), "a VM that is not ours was kept from starting"
    assert until(lambda: "start-waits" in reasons(a, vm.name), 60)
    assert not runs(a, vm.name)
    lab.start("b")
    assert until(lambda: runs(a, vm.name), 60)
    assert until(lambda: "start-waits" not in reasons(a, vm.name), 30)

    # It is done for this boot: who switches the VM off finds it off after a restart of the agent.
    switch_off(vm)
    a.kill_agent()
    a.start_agent()
    time.sleep(8)
    assert not runs(a, vm.name)


@pytest.mark.slow
def test_a_stale_vm_that_a_person_started_all_the_same_is_critical(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="1h")
    vm.stop()
    b.ask("failover", vm.name, "--yes")
    assert "was failed over to b" in refused(vm)
    code, error = refusal(a, "start", vm.name, "--i-am-sure")
    assert (code, error["code"]) == (2, "confirmation-needed")
    assert start(a, vm.name, "--i-am-sure", "--yes")["lives_elsewhere"]
    assert until(lambda: "runs-twice" in reasons(a, vm.name), 30)
    assert relation(a, vm.name)["health"]["level"] == "critical"
    vm.stop()
    assert until(lambda: "runs-twice" not in reasons(a, vm.name), 30)
    b.ask("failover", vm.name, "--cancel", "--yes")
    vm.start()


def test_a_replica_s_vm_does_not_start_from_another_definition_and_foreign_hooks_are_run_too(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name)
    twin = Blank(b, f"{vm.name}-twin", vm=vm.uuid)
    hook = b.layout.hooks.parent / "qemu"
    seen = b.layout.dir / "seen"
    try:
        assert "holds its replica" in refused(twin)
        hook.write_text(f'#!/bin/sh\necho "$1 $2 $3" >>{seen}\n')
        hook.chmod(0o755)
        other = new_blank(b)
        assert f"{other.name} prepare begin" in seen.read_text().splitlines()
    finally:
        hook.unlink(missing_ok=True)
        twin.remove()

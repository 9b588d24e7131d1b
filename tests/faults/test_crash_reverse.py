"""Either agent is killed with SIGKILL between any two steps of a swap of roles: the next one goes on with it."""

import contextlib

import pytest
from fault_kit import Patient
from job_kit import Blank, NewBlank, enable, points, refusal, relation, switch_off
from life_kit import write_noise
from reverse_kit import KiB, MiB, diverge, on, require_equal, require_swapped, wait_reversed

from vmreplica.api.requests import CancelRequest
from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Conflict, Unreachable

pytestmark = [pytest.mark.failover, pytest.mark.slow]

#: In the order of a swap: who is killed, where.
NEW_PRIMARY_FIRST = ("Replica.update:before", "Hypervisor.set_policy:before", "Hypervisor.set_policy:after")
OLD_PRIMARY = (
    "Repository.adopt:before",
    "adopting._publish:before",
    "Repository.adopt:after",
    "Hypervisor.undefine:before",
    "Hypervisor.undefine:after",
    "Replica.finish_adoption:before",
    "Replica.finish_adoption:after",
)
NEW_PRIMARY_LAST = ("PeerClient.reverse:before", "PeerClient.reverse:after", "Hypervisor.set_policy:before")


def test_a_swap_of_roles_goes_on_after_a_kill_at_any_step_on_either_side(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    write_noise(vm, "vda", 0, 2 * MiB)
    enable(a, vm.name, every="24h")
    switch_off(vm)
    last = points(b, vm.name)[-1]["point"]
    b.ask("failover", vm.name, "--yes")
    write_noise(on(b, vm), "vda", 20 * MiB, 64 * KiB)
    patient = Patient(lab, vm.name, vm.uuid)

    a.stop_agent()
    for trap in NEW_PRIMARY_FIRST:
        _kill_while_asked(patient, b, trap)
    patient.start_agent(b)
    assert relation(b, vm.name)["state"] == "reversing", "what was wanted is written down"
    with pytest.raises(Conflict, match="cannot be taken back"):
        AgentClient(b.layout.agent_socket).send("POST", vm_path(vm.name, "cancel"), CancelRequest(tests_only=False))
    patient.start_agent(a)
    b.stop_agent()
    for trap, asked in (("Hypervisor.set_policy:before", False), ("Hypervisor.set_policy:after", True)):
        _kill(patient, b, trap)
        assert _was_asked(b, vm) is asked, "it is written down before the old primary is asked"
    a.stop_agent()
    patient.start_agent(b)
    for trap in OLD_PRIMARY:
        _kill(patient, a, trap)
    b.stop_agent()
    patient.start_agent(a)
    for trap in NEW_PRIMARY_LAST:
        _kill(patient, b, trap)
    patient.start_agent(b)

    wait_reversed(b, vm.name, limit=120)
    require_swapped(a, b, vm)
    require_equal(a, b, vm)
    oldest, newest = points(a, vm.name)
    assert (oldest["point"], oldest["kind"], newest["kind"]) == (last, "final", "delta")
    assert newest["wire_bytes"] <= 1.2 * 64 * KiB


def test_a_vm_whose_old_primary_agreed_unheard_and_took_it_back_does_not_start_on_its_own(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    diverge(lab, vm)
    moved = on(b, vm)
    assert b.ask("reverse", vm.name, "--yes")["error_code"] == "old-primary-away"
    moved.stop()
    b.virsh("start", vm.name)  # its old primary may be gone for good, and never heard of it
    b.stop_agent()
    lab.start("a")
    _kill(Patient(lab, vm.name, vm.uuid), b, "PeerClient.reverse:after")
    lab.crash("b")
    assert until(lambda: relation(a, vm.name)["state"] == "replicating", 60), "it agreed"
    assert a.ask("failover", vm.name, "--yes")["state"] == "failed-over"

    a.stop_agent()
    lab.start("b")
    assert "cannot be asked" in b.virsh("start", vm.name, check=False).stderr
    assert refusal(b, "start", vm.name)[1]["code"] == "start-refused"
    a.start_agent()
    assert until(lambda: relation(b, vm.name)["state"] == "failed-over-elsewhere", 60)
    assert "was failed over to a" in b.virsh("start", vm.name, check=False).stderr
    assert vm.name not in b.virsh("list", "--name").stdout.split()


def _was_asked(host: Host, vm: Blank) -> bool:
    return '"asked":true' in host.virsh("dumpxml", vm.name, "--inactive").stdout.replace("&quot;", '"')


def _kill_while_asked(patient: Patient, host: Host, trap: str) -> None:
    _account(host)
    patient.start_agent(host, trap)
    with pytest.raises(Unreachable):
        AgentClient(host.layout.agent_socket).send("POST", vm_path(patient.name, "reverse"), timeout=60)
    patient.wait_trapped(host)


def _kill(patient: Patient, host: Host, trap: str) -> None:
    """Start an agent that runs into a trap by itself: it recovers, or is asked, or asks."""
    _account(host)
    with contextlib.suppress(Unreachable):  # it may be dead before it answers
        patient.start_agent(host, trap)
    patient.wait_trapped(host)
    assert until(lambda: host.agent_pid is None, 10)


def _account(host: Host) -> None:
    (host.layout.dir / "sent").write_text("")

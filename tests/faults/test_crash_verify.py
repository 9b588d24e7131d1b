"""Either agent is killed with SIGKILL in a verification, or in the repair that follows: asked again, it comes right."""

import contextlib
import os

import pytest
from fault_kit import Patient
from job_kit import NewBlank, points, same_content
from proof_kit import image_of, protected, rot, verify, write

from vmreplica.api.requests import VerifyRequest
from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Conflict, Unreachable
from vmreplica.model.units import KiB, MiB

pytestmark = [pytest.mark.points, pytest.mark.slow]

TRAPS = (
    ("a", "PeerClient.sums:before"),
    ("a", "PeerClient.keep_verdict:before"),
    ("b", "Damages.differs:before"),
    ("b", "Damages.differs:after"),
    ("a", "PeerClient.keep_verdict:after"),
    ("a", "SpoolPoint.finish:after"),
    ("a", "PeerClient.complete:before"),
    ("a", "PeerClient.complete:after"),
    ("b", "Replica.complete:before"),
)


def _kill(patient: Patient, host: Host, trap: str) -> None:
    patient.set_trap(host, trap)
    assert until(lambda: _killed(patient, host), 90), f"the trap did not spring: {trap}"
    patient.start_agent(host)


def _killed(patient: Patient, host: Host) -> bool:
    """Ask for a verification with repair until an agent has killed itself: its peer may just be starting."""
    with contextlib.suppress(Unreachable, Conflict):
        body = VerifyRequest(repair=True)
        AgentClient(patient.a.layout.agent_socket).send("POST", vm_path(patient.name, "verify"), body)
    return host.agent_pid is None


def test_a_verification_and_its_repair_may_be_killed_at_any_step_on_either_side(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, _patch = protected(lab, new_blank)
    patient = Patient(lab, vm.name, vm.uuid)
    for number, (host, trap) in enumerate(TRAPS):
        patch = os.urandom(4 * KiB)
        write(vm, "vda", (8 + number) * MiB + 4 * KiB, patch)
        vm.host.ask("sync", vm.name, timeout=300)
        rot(image_of(lab, vm, -1), patch, os.urandom(4 * KiB))
        _kill(patient, lab.host(host), trap)
        # The repair may have come as far as to go on by itself; then there is nothing left to repair.
        report = verify(vm.host, vm.name, "--repair")
        assert (report["repaired"] or report["verified"])["verdict"] in {"equal", "repaired"}, (trap, report)
        assert verify(vm.host, vm.name)["verified"]["verdict"] == "equal", trap
        assert same_content(image_of(lab, vm, -1), vm.images["vda"]), trap
        newest = points(vm.host, vm.name)[-1]
        assert (newest["holds"], newest["damaged"]) == ([], []), trap
        kept = vm.host.layout.state_dir / "fingerprints" / vm.uuid
        assert sorted(path.name for path in kept.iterdir()) == ["key", "vda.fp"], "copies have no name"

"""The agent is killed in the middle of doctor's trial: nothing of it stays on the VM."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from job_kit import Blank, enable

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.seeding

_LAUNCHER = Path(__file__).with_name("crashing_agent.py")


def _doctor_dies(host: Host, vm: Blank, trap: str) -> None:
    """Run doctor on an agent that kills itself at a call; another agent then takes its place."""
    host.stop_agent()
    said = host.layout.dir / "sent"
    said.write_text("")
    host.start_agent(["env", f"VMREPLICA_TRAP={trap}", f"VMREPLICA_SENT={said}", sys.executable, str(_LAUNCHER)])
    host.vmreplica("doctor", vm.name, check=False)
    assert until(lambda: host.agent_pid is None, 60), "the trap did not spring"
    host.start_agent()


def _left(host: Host, vm: Blank) -> list[str]:
    """Name what is on the VM: checkpoints, a job, files."""
    files = [path for place in ("scratch", "nbd") for path in (host.layout.runtime_dir / place).rglob("*.*")]
    trials = (host.layout.state_dir / "trials").glob("*")
    job = host.virsh("backup-dumpxml", vm.name, check=False).stdout.strip()
    checkpoints = host.virsh("checkpoint-list", vm.name, "--name").stdout.split()
    return [*checkpoints, job[:20], *map(str, files), *map(str, trials)]


_AFTER_BEGIN, _BEFORE_DELETION = "Hypervisor.begin_backup:after", "Hypervisor.delete_checkpoint:before"


@pytest.mark.parametrize("trap", [_AFTER_BEGIN, pytest.param(_BEFORE_DELETION, marks=pytest.mark.slow)])
def test_a_trial_on_a_protected_vm_that_is_killed_is_cleared_up_and_harms_no_bitmap(
    lab: Lab, new_blank: Callable[..., Blank], trap: str
) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    enable(a, vm.name, every="1h")
    a.ask("pause", vm.name)  # so that neither the trap nor the tidying is a cycle's
    (point,) = a.ask("points", vm.name)["points"]
    _doctor_dies(a, vm, trap)
    # Its base was made known to libvirt for the trial; the next cycle puts it away.
    assert until(lambda: _left(a, vm) == [point["checkpoint"], ""], 60), _left(a, vm)
    a.ask("resume", vm.name)
    assert a.ask("sync", vm.name)["result"]["kind"] == "delta"
    assert _left(a, vm) == [""]
    a.ask("disable", vm.name, "--delete-copy", "--yes")


@pytest.mark.slow
@pytest.mark.parametrize("trap", [_AFTER_BEGIN, _BEFORE_DELETION])
def test_a_trial_on_a_vm_without_a_relationship_that_is_killed_is_cleared_up(
    lab: Lab, new_blank: Callable[..., Blank], trap: str
) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    _doctor_dies(a, vm, trap)
    assert until(lambda: _left(a, vm) == [""], 60), _left(a, vm)

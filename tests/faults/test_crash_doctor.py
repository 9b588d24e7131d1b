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


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param("Hypervisor.begin_backup:after", id="the-job-has-begun"),
        pytest.param("Hypervisor.delete_checkpoint:before", id="the-job-has-ended", marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_is_killed_is_cleared_up_on_protected_and_other_vms(
    lab: Lab, new_blank: Callable[..., Blank], trap: str
) -> None:
    a = lab.host("a")
    bare, resting = new_blank(a), new_blank(a)
    enable(a, resting.name, every="1h")
    a.ask("pause", resting.name)  # so that neither the trap nor the tidying is a cycle's
    _doctor_dies(a, bare, trap)
    assert until(lambda: _left(a, bare) == [""], 60), _left(a, bare)
    (point,) = a.ask("points", resting.name)["points"]
    _doctor_dies(a, resting, trap)
    # Its base was made known to libvirt for the trial; the next cycle puts it away.
    assert until(lambda: _left(a, resting) == [point["checkpoint"], ""], 60), _left(a, resting)
    a.ask("resume", resting.name)
    assert a.ask("sync", resting.name)["result"]["kind"] == "delta"
    assert _left(a, resting) == [""]
    a.ask("disable", resting.name, "--delete-copy", "--yes")

"""What can be said of a host whose agent does not answer."""

import time
from pathlib import Path

from vmreplica.agent.config import Config, load_config
from vmreplica.agent.doctor.doctor import make_report
from vmreplica.agent.doctor.probing import run_probes
from vmreplica.agent.doctor.system import HOST_LIMIT, look_at_libvirt, system_probes
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.findings import Finding, fine, found
from vmreplica.model.report import DoctorReport


def examine_without_agent(path: Path, why: VmReplicaError, vm: str | None) -> DoctorReport:
    """Look at configuration, directories, system and libvirt.

    Args:
        path: of the configuration.
        why: what asking the agent came to.
        vm: of which more was wanted.
    """
    began = time.monotonic()
    findings = [found("agent-not-running", "agent", why.message)]
    if vm is not None:
        findings.append(found("check-skipped", vm, "a VM is looked at by the agent"))
    try:
        config = load_config(path)
    except VmReplicaError as error:
        findings.append(found("configuration-invalid", str(path), error.message, hint=error.hint))
        return make_report(None, vm, findings, began, agent=False)
    findings.append(fine("configuration", str(path), "valid"))
    findings += _look(config)
    return make_report(config.agent.name, vm, findings, began, agent=False)


def _look(config: Config) -> list[Finding]:
    agent = config.agent
    try:
        hypervisor = Hypervisor(agent.libvirt_uri, agent.runtime_dir, agent.state_dir)
    except VmReplicaError as error:
        return [found("configuration-invalid", "runtime_dir", error.message, hint=error.hint)]
    look, findings = look_at_libvirt(hypervisor, agent.libvirt_uri)
    return [*findings, *run_probes(system_probes(config, look), limit=HOST_LIMIT)]

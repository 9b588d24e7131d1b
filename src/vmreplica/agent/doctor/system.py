"""The part of a host's examination that needs no agent: configuration, directories, system, libvirt."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from vmreplica.agent.config import Config
from vmreplica.agent.doctor.host_facts import DirectoryFacts, Owner, directory_facts, system_facts
from vmreplica.agent.doctor.judge_hook import hook_findings
from vmreplica.agent.doctor.judge_host import (
    Needs,
    judge_beside,
    judge_clock,
    judge_directories,
    judge_limits,
    judge_rights,
)
from vmreplica.agent.doctor.probing import Probe, failed
from vmreplica.agent.doctor.versions import judge_hypervisor, judge_system
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.examine import DomainLook, HostLook
from vmreplica.model.errors import TimedOut, Unreachable, VmReplicaError
from vmreplica.model.findings import Finding, fine, found

#: Seconds for all looks at a host together: a person waits.
HOST_LIMIT: Final = 25.0


def look_at_libvirt(hypervisor: Hypervisor, uri: str) -> tuple[HostLook | None, list[Finding]]:
    """Look at libvirt, for a limited time; without an answer there is no look, and the finding says why."""
    try:
        look = hypervisor.examiner().host()
    except (Unreachable, TimedOut) as error:
        skipped = found("check-skipped", "VMs, versions of libvirt and QEMU", "libvirt does not answer")
        return None, [found("libvirt-unreachable", uri, error.message, uri=uri), skipped]
    except VmReplicaError as error:
        return None, [failed(f"libvirt at {uri}", error)]
    count = f"{len(look.domains)} VMs, {sum(domain.active for domain in look.domains)} of them run"
    return look, [fine("libvirt", uri, f"it answers: {count}")]


def system_probes(config: Config, look: HostLook | None) -> dict[str, Probe]:
    """List what can be looked at without the agent; each directory by itself, as one on a dead server hangs."""
    qemu = look.qemu_owner if look else None
    probes: dict[str, Probe] = {"system": partial(_system, config, look)}
    for key, path, passed in places(config):
        probes[f"{key} {path}"] = partial(_directory, config, key, path, qemu if passed else None)
    probes["hook of libvirt"] = partial(hook_findings, config)
    if look is not None:
        probes["room beside images"] = partial(_beside, config, look.domains)
    return probes


def places(config: Config) -> list[tuple[str, Path, bool]]:
    """List the directories of the configuration: key, path, and whether QEMU must pass through."""
    agent = config.agent
    return [
        ("state_dir", agent.state_dir, False),
        ("pki", agent.state_dir / "pki", False),
        ("spool", agent.state_dir / "spool", False),
        ("store", agent.store, True),
        ("runtime_dir", agent.runtime_dir, True),
    ]


def needs_of(config: Config) -> Needs:
    """Tell what the configuration asks of the host."""
    limits = config.limits
    return Needs(
        min_free=limits.min_free,
        spool_cap=limits.spool_cap,
        scratch_cap=limits.scratch_cap,
        cycles=limits.concurrent_cycles,
    )


def _system(config: Config, look: HostLook | None) -> list[Finding]:
    facts = system_facts()
    return [
        *judge_system(facts),
        *(judge_hypervisor(look) if look else ()),
        *judge_rights(facts, look, config.agent.runtime_dir),
        *judge_limits(facts, needs_of(config)),
        *judge_clock(facts),
    ]


def _directory(config: Config, key: str, path: Path, qemu: Owner | None) -> list[Finding]:
    return judge_directories([directory_facts(key, path, qemu)], needs_of(config))


def _beside(config: Config, domains: Sequence[DomainLook]) -> list[Finding]:
    known: list[DirectoryFacts] = [directory_facts(key, path, None) for key, path, _ in places(config)]
    live = (_device(path) for domain in domains if domain.active for path in domain.images)
    return judge_beside(known, {device for device in live if device is not None}, needs_of(config))


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None

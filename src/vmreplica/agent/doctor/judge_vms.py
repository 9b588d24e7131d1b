"""From facts about all VMs and about what lies around to findings. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmreplica.hypervisor.examine import DomainLook
from vmreplica.model.findings import Finding, fine, found
from vmreplica.model.ids import CHECKPOINT_PREFIX, HostId, VmId, is_our_checkpoint

#: How many leftovers of a kind are named one by one.
_NAMED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What lies in our directories, by VM."""

    scratch: Mapping[VmId, Path]
    spool: Mapping[VmId, Path]
    fingerprints: Mapping[VmId, Path]
    #: Documents of checkpoints that libvirt need not know.
    checkpoints: Mapping[VmId, Sequence[Path]]
    #: Layers of failovers whose replica is not failed over; by the VM's name.
    run_layers: Mapping[str, Path]


def judge_autostart(domains: Sequence[DomainLook], protected: Collection[VmId]) -> list[Finding]:
    """Judge whether a protected VM would be started without anybody asking its replica."""
    ours = [domain for domain in domains if domain.vm in protected]
    starting = [domain for domain in ours if domain.autostart]
    if ours and not starting:
        return [fine("vms", "autostart", f"off for all {len(ours)} protected VMs")]
    return [found("autostart-on", one.name, "libvirt starts it with the host", vm=one.name) for one in starting]


def judge_domains(
    domains: Sequence[DomainLook], protected: Mapping[VmId, HostId], trials: Collection[str]
) -> list[Finding]:
    """Find jobs and checkpoints of ours that belong to no relationship.

    Args:
        domains: all of libvirt's.
        protected: the replica of each protected VM.
        trials: checkpoints of trials under way.
    """
    return [one for domain in domains for one in _left_on(domain, protected.get(domain.vm), trials)]


def _left_on(domain: DomainLook, replica: HostId | None, trials: Collection[str]) -> Iterator[Finding]:
    stray = [
        name
        for name in domain.checkpoints
        if name.startswith(CHECKPOINT_PREFIX)
        and name not in trials
        and not (replica is not None and is_our_checkpoint(name, replica))
    ]
    if domain.job == "ours" and replica is None and not trials:
        yield found("job-left", domain.name, "a backup job of vmreplica runs on it", vm=domain.name)
    for name in stray[:_NAMED]:
        yield found("checkpoint-left", domain.name, f"checkpoint {name}", vm=domain.name, checkpoint=name)


def judge_leftovers(
    left: Leftovers, domains: Sequence[DomainLook], protected: Collection[VmId], busy: Collection[VmId]
) -> list[Finding]:
    """Find files of ours that nobody needs any more.

    Args:
        left: what lies around.
        domains: all of libvirt's.
        protected: VMs with a relationship.
        busy: VMs of which a cycle or a trial runs now.
    """
    with_job = {domain.vm for domain in domains if domain.job == "ours"} | set(busy)
    findings = [
        found("scratch-left", str(path), f"no backup job of {vm} runs", path=path)
        for vm, path in left.scratch.items()
        if vm not in with_job
    ]
    findings += [
        found("spool-left", str(path), f"{vm} is not protected here", path=path)
        for vm, path in left.spool.items()
        if vm not in protected
    ]
    wanted = {*protected, *busy}
    names = {domain.vm: domain.name for domain in domains}
    findings += [
        found("state-left", str(path), f"{vm} is not protected here", path=path)
        for vm, path in left.fingerprints.items()
        if vm not in wanted
    ]
    findings += [
        _document_left(path, names.get(vm))
        for vm, paths in left.checkpoints.items()
        if vm not in wanted
        for path in paths
    ]
    findings += [
        found("run-layer-left", name, f"{path} is there, and the VM is not failed over", path=path)
        for name, path in left.run_layers.items()
    ]
    return findings[: 4 * _NAMED]


def _document_left(path: Path, vm: str | None) -> Finding:
    if vm is None:
        return found("state-left", str(path), "no such VM is here", path=path)
    text = f"{path.stem}, hidden from libvirt; the VM is not protected here"
    return found("bitmaps-left", vm, text, vm=vm, path=path, checkpoint=path.stem)

"""What lies in our directories, by VM. Only looks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmreplica.agent.config import Config
from vmreplica.agent.doctor.judge_vms import Leftovers
from vmreplica.model.ids import VmId
from vmreplica.repository import Repository

_VM: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def find_leftovers(config: Config, repository: Repository) -> Leftovers:
    """Look at what lies around; whether anybody needs it is judged by others."""
    agent = config.agent
    return Leftovers(
        scratch=dict(_by_vm(agent.runtime_dir / "scratch")),
        spool=dict(_by_vm(agent.state_dir / "spool")),
        fingerprints=dict(_by_vm(agent.state_dir / "fingerprints")),
        checkpoints={vm: sorted(path.glob("*.xml")) for vm, path in _by_vm(agent.state_dir / "checkpoints")},
        run_layers=dict(_run_layers(repository)),
    )


def _by_vm(directory: Path) -> Iterator[tuple[VmId, Path]]:
    """List the directories of VMs that hold anything."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if _VM.fullmatch(path.name) and any(path.iterdir()):
            yield path.name, path


def _run_layers(repository: Repository) -> Iterator[tuple[str, Path]]:
    for replica in repository.replicas():
        if replica.record.failover is None and replica.run_dir.exists():
            yield replica.record.name, replica.run_dir

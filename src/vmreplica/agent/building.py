"""From the configuration to the parts of an agent."""

import os
from pathlib import Path
from typing import Final

from vmreplica.agent.config import Config
from vmreplica.agent.facts import Stages
from vmreplica.agent.journal import Journal
from vmreplica.agent.quiescing import Quiescer
from vmreplica.agent.rest import RestBook
from vmreplica.agent.seed_source import SeedRules
from vmreplica.agent.seeding import SeedTools
from vmreplica.agent.transfer import TransferLimits
from vmreplica.fingerprint import FingerprintStore
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.units import MiB
from vmreplica.repository import Repository
from vmreplica.spool import Spool

#: Bytes between reading an existing copy and storing it: both are quick, so little waits.
_SEED_SPOOL: Final = 64 * MiB


def make_repository(config: Config) -> Repository:
    """Open the store of what this host holds for others."""
    return Repository(
        config.agent.store,
        min_free=config.limits.min_free,
        base_devices=config.replica.base_devices,
        merge_limit=config.replica.merge_limit,
    )


def make_stages(config: Config, hypervisor: Hypervisor, journal: Journal) -> Stages:
    """Put together what every cycle on this host shares."""
    state = config.agent.state_dir
    return Stages(
        hypervisor=hypervisor,
        spool=Spool(state / "spool", config.limits.spool_cap),
        spool_dir=state / "spool",
        fingerprints=FingerprintStore(state / "fingerprints"),
        rest=RestBook(state / "rest"),
        quiescer=Quiescer(state, hypervisor, journal, config.limits.freeze),
        limits=_transfer_limits(config),
    )


def seed_tools(config: Config) -> SeedTools:
    """Put together what a replica needs to begin with an existing copy."""
    spool = Spool(config.agent.state_dir / "seeding", _SEED_SPOOL)
    rules = SeedRules(dirs=config.replica.seed_dirs, devices=config.replica.seed_devices)
    limits = config.limits
    return SeedTools(
        rules=rules, spool=spool, sockets=config.agent.runtime_dir, workers=limits.workers, level=limits.level
    )


def make_dir(path: Path) -> None:
    """Make a directory that QEMU, running as another user, may pass through but not list.

    Raises:
        VmReplicaError: ``directory-unusable``.
    """
    try:
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise VmReplicaError(
            "directory-unusable",
            f"cannot make the directory {path}: {os.strerror(error.errno or 0)}",
            hint="correct the path in the configuration, or the rights on its parent",
            kind="operator",
        ) from error


def _transfer_limits(config: Config) -> TransferLimits:
    limits = config.limits
    return TransferLimits(
        workers=limits.workers,
        connections=limits.connections,
        level=limits.level,
        scratch_dir=config.agent.runtime_dir,
        scratch_cap=limits.scratch_cap,
        min_free=limits.min_free,
    )

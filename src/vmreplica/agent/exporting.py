"""An initial replication by export, on the primary: preparing the directory, and giving a lost export up."""

import datetime as dt
from pathlib import Path
from typing import Final

from vmreplica.agent.decide import MAX_WAITING
from vmreplica.hypervisor import DomainBrief
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.export import ExportSeed, SeedExport
from vmreplica.model.ids import HostId, PointId, VmName, point_instant
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.seed import SeedRequest
from vmreplica.parcel import prepare_export

#: Seconds that capture waits for room when what is in the way is a medium that a person has to change.
PATIENCE: Final = 7 * 86400.0
#: While the base travels, a new point is taken when it is by this part of the base's age younger than the last one.
_SPACING: Final = 8


def prepare_seed(
    wish: ExportSeed, brief: DomainBrief, primary: HostId, replica: HostId, old: Policy | None
) -> SeedExport:
    """Make the directory of an export ready; one that is on its way there already is gone on with.

    Raises:
        VmReplicaError: see ``prepare_export``.
    """
    return prepare_export(
        wish.directory,
        vm=brief.vm,
        name=brief.name,
        primary=primary,
        replica=replica,
        passphrase=wish.passphrase,
        recipient=wish.recipient,
        known=old.seed if old else None,
    )


def is_same(wish: SeedRequest | None, old: Policy | None) -> bool:
    """Tell whether a wish changes nothing about the way of the first copy."""
    if wish is None:
        return True
    known = old.seed if old else None
    return isinstance(wish, ExportSeed) and known is not None and known.directory == wish.directory


def check_change(name: VmName, wish: SeedRequest | None, position: Position, *, sure: bool) -> None:
    """Refuse another way of the first copy that nobody needs, or that gives up an export without a word.

    Args:
        name: of the VM.
        wish: another one than before.
        position: of the replica.
        sure: an export that the replica waits for is lost.

    Raises:
        Conflict: ``replica-has-points``, ``export-awaited``.
    """
    if position.awaited is not None and not sure:
        raise Conflict(
            "export-awaited",
            f"the replica waits for the export of {name} (point {position.awaited}): to seed it in another way "
            f"gives that export up, and removes the {position.points - 1} points that wait for it",
            hint="import the export on the replica; or, when it is lost, add --yes",
        )
    if isinstance(wish, ExportSeed) and position.latest is not None and position.awaited is None:
        raise Conflict(
            "replica-has-points",
            f"the replica of {name} has its first copy already: an export is not needed",
            hint=f"vmreplica enable {name} --to PEER, without --seed, changes the policy",
        )


def spacing(interval: float, awaited: PointId | None, now: dt.datetime) -> float:
    """Tell the seconds between two cycles: longer and longer while the base travels, so that few points wait for it.

    Args:
        interval: of the policy, seconds.
        awaited: the base that travels, if one does.
        now: aware time.
    """
    if awaited is None:
        return interval
    return max(interval, (now - point_instant(awaited)).total_seconds() / _SPACING)


def reserve_in(directory: Path, own: Path, least: int) -> int:
    """Tell the bytes to leave free where an export is written: some only where this host keeps its own files."""
    try:
        return least if directory.stat().st_dev == own.stat().st_dev else 0
    except OSError:
        return 0


def base_awaited(name: VmName) -> VmReplicaError:
    """Say that no more points are taken until the export has come."""
    return Conflict(
        "base-awaited",
        f"{MAX_WAITING} points of {name} wait for the export to be imported: no more are taken until then",
        hint="on the replica: vmreplica import DIR; what changes meanwhile is sent afterwards",
        kind="transient",
    )

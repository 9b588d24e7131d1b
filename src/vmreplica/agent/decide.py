"""What a replication cycle does next: a pure function of facts asked anew before each step.

See docs/design/states.md for the table. Each step is idempotent; after it (or after a crash in it) the facts are
asked again and the next step follows from them, so there is nothing to remember and nothing to resume by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vmreplica.agent.repairs import repair_ranges, repair_texts
from vmreplica.model.errors import Problem
from vmreplica.model.ids import CheckpointName, DiskTarget, HostId, PointId, is_our_checkpoint
from vmreplica.model.point import DiskMode, PointKind, PointOpening, PointSummary, Position, Seeding
from vmreplica.model.states import RECEIVING

#: Why a cycle waits while the replica makes its first point from an existing copy.
WAITS_FOR_SEED = "seeding"
_SEEDED = "seeded from an existing copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFacts:
    """The one pending point in the spool."""

    opening: PointOpening
    #: Every disk was read to its end: the guest is no longer needed for it.
    complete: bool
    #: Its backup job still runs in libvirt, so reading can go on at the same instant.
    job_runs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One disk to be replicated."""

    #: Virtual size in bytes.
    size: int
    #: Whether it can hold a bitmap; a raw file or a block device cannot.
    tracked: bool
    #: Whether its fingerprint describes the replica's latest point.
    fingerprint_good: bool
    #: Why the checkpoint of the replica's latest point cannot carry a delta of it; None: it can.
    trouble: str | None = None
    #: The replica could not tell the fingerprint.
    unfetchable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleFacts:
    """All that a decision rests on."""

    replica: HostId
    epoch: int
    position: Position
    running: bool
    #: It is off, and its latest point was taken from its images as they are: nothing is lost, nothing to be done.
    at_rest: bool
    #: Disks to replicate now.
    disks: Mapping[DiskTarget, DiskFacts]
    #: Every checkpoint on the domain, foreign ones included.
    checkpoints: tuple[str, ...]
    spool: SpoolFacts | None
    #: A planned failover waits for the last point of the VM that is off.
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The replica has moved on without us: nothing may be shipped."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """A failover was taken back and the replica takes points again: go on under the epoch that it left behind."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidy:
    """Remove what no longer leads anywhere, then ask again."""

    discard_spool: bool
    checkpoints: tuple[str, ...]
    why: str
    #: The spooled point is the replica's latest one: its staged fingerprint becomes true first.
    acknowledged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ship:
    """Send the complete point that waits in the spool."""

    point: PointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """Go on reading and sending the point whose backup job outlived us."""

    point: PointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Ask the replica what it holds of disks whose fingerprint is in doubt."""

    point: PointId
    targets: tuple[DiskTarget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Begin a new point."""

    kind: PointKind
    parent: PointId | None
    #: How each disk is read.
    modes: Mapping[DiskTarget, DiskMode] = field(hash=False)
    #: The checkpoint whose bitmaps carry the deltas.
    base: CheckpointName | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing can be done until something outside changes."""

    reason: str


#: Points that wait for their base at most: more would make the chain long without bringing it any nearer to use.
MAX_WAITING: Final = 60
#: Why a cycle waits while the replica waits for an export: enough points stand on what is not there.
BASE_AWAITED = "base-awaited"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFailed:
    """The replica cannot begin with the existing copy that it was told to: a person has to decide."""

    problem: Problem


Step = Fenced | Adopt | SeedFailed | Tidy | Ship | Continue | Fetch | Capture | Wait


def decide(facts: CycleFacts) -> Step:
    """Choose the next step."""
    if facts.position.epoch > facts.epoch:
        taken_back = facts.position.state in RECEIVING
        return Adopt(epoch=facts.position.epoch) if taken_back else Fenced(epoch=facts.position.epoch)
    if facts.position.seeding is not None:
        return _with_seeding(facts, facts.position.seeding)
    if facts.spool is not None:
        return _with_spool(facts, facts.spool)
    stray = _stray_checkpoints(facts)
    if stray:
        return Tidy(discard_spool=False, checkpoints=stray, why="checkpoints that lead to no point")
    return _capture(facts)


def _with_seeding(facts: CycleFacts, seeding: Seeding) -> Step:
    if facts.spool is not None:
        return _drop_spooled(facts.spool.opening, "the replica begins with an existing copy")
    if seeding.failed is not None:
        return SeedFailed(problem=seeding.failed)
    return Wait(reason=WAITS_FOR_SEED)


def _with_spool(facts: CycleFacts, spool: SpoolFacts) -> Step:
    opening = spool.opening
    latest = facts.position.latest
    if latest is not None and latest.point == opening.point:
        why = "the replica has acknowledged the spooled point"
        return Tidy(discard_spool=True, checkpoints=(), why=why, acknowledged=True)
    if not _follows(facts, opening):
        return _drop_spooled(opening, "the spooled point does not follow the replica's latest one")
    if spool.complete:
        return Ship(point=opening.point)
    if spool.job_runs:
        return Continue(point=opening.point)
    return _drop_spooled(opening, "the backup job of the spooled point is gone")


def _follows(facts: CycleFacts, opening: PointOpening) -> bool:
    latest = facts.position.latest
    if opening.epoch != facts.epoch:
        return False
    if opening.kind == "initial":
        return latest is None
    if opening.parent is None:
        return latest is not None and latest.point < opening.point
    return latest is not None and opening.parent == latest.point


def _drop_spooled(opening: PointOpening, why: str) -> Tidy:
    names = () if opening.checkpoint is None else (opening.checkpoint,)
    return Tidy(discard_spool=True, checkpoints=names, why=why)


def _stray_checkpoints(facts: CycleFacts) -> tuple[str, ...]:
    base = facts.position.latest.checkpoint if facts.position.latest else None
    tracked = [disk for disk in facts.disks.values() if disk.tracked]
    useless = bool(tracked) and all(disk.trouble for disk in tracked)
    ours = (name for name in facts.checkpoints if is_our_checkpoint(name, facts.replica))
    return tuple(name for name in ours if useless or name != base)


def _capture(facts: CycleFacts) -> Step:
    if facts.at_rest and not facts.running and not repair_ranges(facts.position.repairs, facts.disks):
        return Wait(reason="vm-off")
    latest = facts.position.latest
    if latest is None:
        modes: dict[DiskTarget, DiskMode] = dict.fromkeys(facts.disks, "whole")
        return Capture(kind="initial", parent=None, modes=modes, base=None, reason="no point yet")
    if facts.position.awaited is not None and facts.position.points > MAX_WAITING:
        return Wait(reason=BASE_AWAITED)
    doubtful = _doubtful(facts, latest)
    if doubtful:
        return Fetch(point=latest.point, targets=doubtful)
    return _delta(facts, latest)


def _delta(facts: CycleFacts, latest: PointSummary) -> Capture:
    """Choose for each disk the cheapest sound way; one point carries them all."""
    troubles = {target: _trouble(facts, target, latest) for target in facts.disks}
    modes = {target: _mode(facts, target, latest, troubles[target]) for target in facts.disks}
    told = sorted(f"{target}: {why}" for target, why in troubles.items() if why)
    told += repair_texts(repair_ranges(facts.position.repairs, facts.disks))
    told += [] if facts.running else ["the VM is off: its last point"]
    known = {disk.target for disk in latest.disks}
    usual: PointKind = "final" if facts.last and not facts.running else "delta"
    return Capture(
        kind="resync" if any(troubles[target] for target in troubles if target in known) else usual,
        parent=latest.point,
        modes=modes,
        base=latest.checkpoint if "delta" in modes.values() else None,
        reason="; ".join(told) or "interval",
    )


def _mode(facts: CycleFacts, target: DiskTarget, latest: PointSummary, trouble: str | None) -> DiskMode:
    disk = facts.disks[target]
    if not disk.fingerprint_good or _shrunk(facts, target, latest):
        return "whole"
    return "delta" if trouble is None and disk.tracked else "compare"


def _trouble(facts: CycleFacts, target: DiskTarget, latest: PointSummary) -> str | None:
    """Say why a disk cannot go the usual way."""
    disk = facts.disks[target]
    if target not in {known.target for known in latest.disks}:
        return "a new disk"
    if _shrunk(facts, target, latest):
        return "it became smaller"
    if not disk.fingerprint_good:
        return "its fingerprint is in doubt, and the replica cannot tell it"
    if latest.kind == "seed":
        return _SEEDED
    if disk.trouble is not None or not disk.tracked:
        return disk.trouble
    known = latest.checkpoint is not None and latest.checkpoint in facts.checkpoints
    return None if known else "the checkpoint of the replica's latest point is gone"


def _doubtful(facts: CycleFacts, latest: PointSummary) -> tuple[DiskTarget, ...]:
    known = {disk.target for disk in latest.disks}
    return tuple(
        sorted(
            target
            for target, disk in facts.disks.items()
            if target in known
            and not disk.fingerprint_good
            and not disk.unfetchable
            and not _shrunk(facts, target, latest)
        )
    )


def _shrunk(facts: CycleFacts, target: DiskTarget, latest: PointSummary) -> bool:
    """Tell whether a disk became smaller: what lay behind its new end must not come back when it grows again."""
    sizes = {disk.target: disk.size for disk in latest.disks}
    return facts.disks[target].size < sizes.get(target, 0)

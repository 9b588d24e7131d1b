"""What a replication cycle does next: a pure function of facts asked anew before each step.

See docs/design/states.md for the table. Each step is idempotent; after it (or after a crash in it) the facts are
asked again and the next step follows from them, so there is nothing to remember and nothing to resume by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreplica.model.ids import CheckpointName, DiskTarget, HostId, PointId, is_our_checkpoint
from vmreplica.model.point import PointKind, PointOpening, Position


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFacts:
    """The one pending point in the spool."""

    opening: PointOpening
    #: Every disk was read to its end: the guest is no longer needed for it.
    complete: bool
    #: Its backup job still runs in libvirt, so reading can go on at the same instant.
    job_runs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleFacts:
    """All that a decision rests on."""

    replica: HostId
    epoch: int
    position: Position
    running: bool
    #: Disks to replicate now, with their virtual sizes in bytes.
    disks: Mapping[DiskTarget, int]
    #: Every checkpoint on the domain, foreign ones included.
    checkpoints: tuple[str, ...]
    spool: SpoolFacts | None
    #: Why the checkpoint of the replica's latest point cannot carry a delta; None: it can.
    base_trouble: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The replica has moved on without us: nothing may be shipped."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidy:
    """Remove what no longer leads anywhere, then ask again."""

    discard_spool: bool
    checkpoints: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ship:
    """Send the complete point that waits in the spool."""

    point: PointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """Go on reading and sending the point whose backup job outlived us."""

    point: PointId


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Begin a new point."""

    kind: PointKind
    parent: PointId | None
    #: Base checkpoint of each disk; None: the whole disk.
    bases: Mapping[DiskTarget, CheckpointName | None] = field(hash=False)
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing can be done until something outside changes."""

    reason: str


Step = Fenced | Tidy | Ship | Continue | Capture | Wait


def decide(facts: CycleFacts) -> Step:
    """Choose the next step."""
    if facts.position.epoch > facts.epoch:
        return Fenced(epoch=facts.position.epoch)
    if facts.spool is not None:
        return _with_spool(facts, facts.spool)
    stray = _stray_checkpoints(facts)
    if stray:
        return Tidy(discard_spool=False, checkpoints=stray, why="checkpoints that lead to no point")
    return _capture(facts)


def _with_spool(facts: CycleFacts, spool: SpoolFacts) -> Step:
    opening = spool.opening
    latest = facts.position.latest
    if latest is not None and latest.point == opening.point:
        return Tidy(discard_spool=True, checkpoints=(), why="the replica has acknowledged the spooled point")
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
    if opening.kind == "resync":
        return latest is not None and latest.point < opening.point
    return latest is not None and opening.parent == latest.point


def _drop_spooled(opening: PointOpening, why: str) -> Tidy:
    names = () if opening.checkpoint is None else (opening.checkpoint,)
    return Tidy(discard_spool=True, checkpoints=names, why=why)


def _stray_checkpoints(facts: CycleFacts) -> tuple[str, ...]:
    base = facts.position.latest.checkpoint if facts.position.latest else None
    keep = None if facts.base_trouble else base
    ours = (name for name in facts.checkpoints if is_our_checkpoint(name, facts.replica))
    return tuple(name for name in ours if name != keep)


def _capture(facts: CycleFacts) -> Step:
    if not facts.running:
        return Wait(reason="vm-off")
    latest = facts.position.latest
    if latest is None:
        return Capture(kind="initial", parent=None, bases=dict.fromkeys(facts.disks), reason="no point yet")
    trouble = facts.base_trouble or _missing(facts, latest.checkpoint) or _shrunk(facts)
    if trouble is not None:
        return Capture(kind="resync", parent=None, bases=dict.fromkeys(facts.disks), reason=trouble)
    known = {disk.target for disk in latest.disks}
    bases = {target: latest.checkpoint if target in known else None for target in facts.disks}
    return Capture(kind="delta", parent=latest.point, bases=bases, reason="interval")


def _missing(facts: CycleFacts, base: CheckpointName | None) -> str | None:
    if base is None or base not in facts.checkpoints:
        return "the checkpoint of the replica's latest point is gone"
    return None


def _shrunk(facts: CycleFacts) -> str | None:
    latest = facts.position.latest
    sizes = {disk.target: disk.size for disk in latest.disks} if latest else {}
    smaller = sorted(target for target, size in facts.disks.items() if size < sizes.get(target, 0))
    return f"{', '.join(smaller)} became smaller" if smaller else None

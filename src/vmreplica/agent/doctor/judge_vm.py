"""From facts about one VM to findings. Pure."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmreplica.agent.doctor.vm_facts import ImageFacts
from vmreplica.hypervisor import DiskView
from vmreplica.hypervisor.examine import GuestAgent, VmLook
from vmreplica.hypervisor.quiesce import HOOK, FreezeLook
from vmreplica.model.findings import Finding, fine, found
from vmreplica.model.ids import CHECKPOINT_PREFIX, DiskTarget, HostName, VmName
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.proof import QuiesceFacts
from vmreplica.model.report import CycleReport
from vmreplica.model.units import MiB, format_duration, format_size

_MANY_BITMAPS: Final = 10
#: Below this, a qcow2 image that must grow for its bitmaps may not be opened again.
_LAST_ROOM: Final = 64 * MiB

#: Our own policy is in there; a guest sees nothing of it.
_UNTOLD: Final = frozenset({"left out: metadata"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchFacts:
    """Room for scratch files; bytes."""

    path: Path
    free: int
    min_free: int
    #: The most that one of the last cycles read as changed; None when none was published.
    largest_delta: int | None


def judge_state(look: VmLook, policy: Policy | None, last: CycleReport | None) -> list[Finding]:
    """Judge whether the VM is protected and runs."""
    name = look.view.name
    findings = []
    if policy is None:
        findings.append(found("vm-not-protected", name, "it has no relationship here", vm=name))
    elif policy.paused:
        findings.append(found("vm-paused", name, "replication is paused", vm=name))
    if not look.view.active:
        findings.append(found("vm-off", name, "it is shut off", vm=name))
    if last is not None and last.outcome == "failed":
        text = f"{last.error} ({last.error_code})"
        findings.append(found("cycle-failed", name, text, hint=last.hint or "see the agent's log"))
    return findings or [fine("vm", name, "it runs and is protected")]


def judge_replica(name: VmName, peer: HostName, policy: Policy, position: Position, first_copy: int) -> list[Finding]:
    """Judge what the replica says.

    Args:
        name: of the VM.
        peer: the replica's host.
        policy: of the relationship.
        position: what the replica says.
        first_copy: bytes that a first copy may take there.
    """
    findings = []
    if position.epoch > policy.epoch:
        text = f"the replica's epoch is {position.epoch}, this host's {policy.epoch}"
        findings.append(found("failed-over-elsewhere", name, text, vm=name))
    if position.latest is None and position.free_bytes < first_copy:
        text = f"{format_size(position.free_bytes)} free on {peer}, the disks take {format_size(first_copy)}"
        findings.append(found("replica-room", name, text, peer=peer))
    findings += [found("replica-complains", peer, text, vm=name) for text in position.complaints]
    count = f"{position.points} points, epoch {position.epoch}, {format_size(position.free_bytes)} free"
    return findings or [fine("replica", peer, count)]


def judge_disks(name: VmName, disks: Sequence[DiskView], excluded: Collection[DiskTarget]) -> list[Finding]:
    """Judge each device below ``<disk>``."""
    findings = [_disk(name, disk, disk.target in excluded) for disk in disks]
    if not any(disk.reason_ineligible is None and disk.target not in excluded for disk in disks):
        findings.append(found("no-eligible-disks", name, "it has no disk that can be replicated", vm=name))
    return findings


def _disk(name: VmName, disk: DiskView, excluded: bool) -> Finding:
    if excluded:
        return found("disk-excluded", disk.target, "left out by the policy")
    if disk.device != "disk" and disk.reason_ineligible is not None:
        return found("disk-excluded", disk.target, disk.reason_ineligible)
    if disk.reason_ineligible is not None:
        return found("disk-not-eligible", disk.target, disk.reason_ineligible, vm=name, disk=disk.target)
    if disk.reason_untracked is not None:
        return found("disk-untracked", disk.target, disk.reason_untracked)
    return fine("disks", disk.target, f"{disk.format}, {format_size(disk.size)}, changes are tracked")


def judge_image(name: VmName, image: ImageFacts, *, active: bool, min_free: int) -> list[Finding]:
    """Judge one disk's image: its chain, bitmaps and the room beside it."""
    if image.error is not None:
        return [found("image-unreadable", image.target, image.error, vm=name, path=image.path)]
    return [*_chain(image), *_room(image, min_free), *_bitmaps(name, image, active=active)]


def _chain(image: ImageFacts) -> Iterator[Finding]:
    if image.formless is not None:
        text = f"{image.formless} does not say its backing file's format"
        yield found("backing-format-missing", image.target, text, path=image.formless)
    elif image.depth > 1:
        yield fine("disks", image.target, f"a chain of {image.depth} images, all readable")


def _room(image: ImageFacts, min_free: int) -> Iterator[Finding]:
    if image.free is None:
        return
    text = f"{format_size(image.free)} free beside {image.path}"
    if image.free < _LAST_ROOM:
        yield found("image-space-none", image.target, text, path=image.path)
    elif image.free < min_free:
        yield found("image-space-low", image.target, text, path=image.path)
    else:
        yield fine("space", image.target, text)


def _bitmaps(name: VmName, image: ImageFacts, *, active: bool) -> Iterator[Finding]:
    """Judge stored bitmaps. While QEMU has the image open each is marked in-use, and only a trial tells more."""
    for bitmap in image.bitmaps if not active else ():
        if bitmap.in_use and bitmap.name.startswith(CHECKPOINT_PREFIX):
            yield found("bitmap-broken", image.target, f"bitmap {bitmap.name} was not stored cleanly")
        elif bitmap.in_use:
            text = f"bitmap {bitmap.name} was not stored cleanly"
            yield found("bitmap-broken-foreign", image.target, text, path=image.path, bitmap=bitmap.name)
    if len(image.bitmaps) > _MANY_BITMAPS:
        yield found("bitmaps-many", image.target, f"{len(image.bitmaps)} bitmaps in {image.path}", vm=name)


def judge_checkpoints(look: VmLook) -> list[Finding]:
    """Judge checkpoints and jobs of others; ours are visible during a cycle only."""
    name = look.view.name
    foreign = [one for one in look.checkpoints if not one.startswith(CHECKPOINT_PREFIX)]
    findings = []
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")  # noqa: PLR2004 - enough to know them
        findings.append(found("checkpoints-foreign", name, f"{len(foreign)} of other programs: {shown}"))
    if len(foreign) > _MANY_BITMAPS:
        findings.append(found("bitmaps-many", name, f"{len(foreign)} checkpoints", vm=name))
    if look.job == "foreign":
        findings.append(found("job-foreign", name, "a backup job of another program runs", vm=name))
    elif look.busy is not None:
        findings.append(found("job-foreign", name, look.busy, vm=name))
    if not findings:
        findings.append(fine("checkpoints", name, "no checkpoints of other programs, no other job"))
    return findings


def judge_scratch(facts: ScratchFacts) -> list[Finding]:
    """Judge whether what a guest changes during a job finds room."""
    subject = f"scratch {facts.path}"
    room = max(0, facts.free - facts.min_free)
    if facts.largest_delta is None:
        return [fine("space", subject, f"{format_size(room)} may be used; no cycle tells yet how much is needed")]
    text = f"{format_size(room)} may be used, one of the last cycles read {format_size(facts.largest_delta)}"
    if room < facts.largest_delta:
        return [found("scratch-small", subject, text, path=facts.path)]
    return [fine("space", subject, text)]


def judge_guest_agent(name: VmName, answer: GuestAgent, *, wanted: bool) -> Finding:
    """Judge the guest agent of a running VM.

    Args:
        name: of the VM.
        answer: what came of asking it.
        wanted: whether its points shall be application-consistent.
    """
    if answer == "answers":
        return fine("guest-agent", name, "it answers")
    if answer == "silent":
        return found("guest-agent-silent", name, "its channel is connected, it does not answer")
    return found(
        "guest-agent-wanted" if wanted else "guest-agent-absent", name, "its channel is not connected", vm=name
    )


def judge_freezing(name: VmName, look: FreezeLook) -> list[Finding]:
    """Judge whether a guest whose agent answers can be quiesced."""
    if look.missing:
        return [found("guest-cannot-freeze", name, f"not obeyed: {', '.join(look.missing)}")]
    if look.frozen:
        return [found("guest-frozen", name, "its agent says so", vm=name)]
    if look.hook is False:
        return [found("freeze-hook-absent", name, f"there is no {HOOK}")]
    told = {True: f"there is a hook, {HOOK}", None: "whether there is a hook, its agent does not tell"}[look.hook]
    return [fine("guest-agent", name, f"its file systems can be frozen; {told}")]


def judge_quiescing(name: VmName, went: QuiesceFacts) -> list[Finding]:
    """Judge how the last tries to quiesce a guest went, whatever its agent says now."""
    if not went.failures:
        return []
    times = "the last time" if went.failures == 1 else f"{went.failures} times in a row"
    return [found("guest-not-quiesced", name, f"it failed {times}: {went.text}", vm=name)]


def judge_definition(name: VmName, notes: Sequence[str]) -> list[Finding]:
    """Judge what became of the definition on its way to a replica like this host."""
    told = [note for note in notes if note not in _UNTOLD]
    if not told:
        return [fine("definition", name, "a host like this one would accept it")]
    return [found("definition-changed", name, note, vm=name) for note in told]


def trial_fine(name: VmName, disks: Sequence[DiskTarget], seconds: float) -> Finding:
    """Say that a trial went well."""
    text = f"a backup job of {', '.join(disks)} was begun, read from and ended"
    shown = format_duration(seconds) if seconds >= 10 else f"{seconds:.2f} s"  # noqa: PLR2004 - tells enough
    return fine("trial", name, f"{text} in {shown}")

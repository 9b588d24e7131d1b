"""Recovery points: how one is announced, closed, acknowledged, and what its manifest says for ever."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from vmreplica.model.boot import BootResult
from vmreplica.model.damage import Repairs
from vmreplica.model.errors import Problem
from vmreplica.model.health import Reason
from vmreplica.model.ids import CheckpointName, DevicePath, DiskTarget, ImagePath, PointId, VmId, VmName
from vmreplica.model.keep import Keep
from vmreplica.model.machine import MachineEntries, MachineFiles, Remarks, require_acceptable
from vmreplica.model.quiesce import NEVER, AppConsistent, Remark
from vmreplica.model.shape import Shape
from vmreplica.model.units import CLUSTER
from vmreplica.model.verified import Proof, Verified

#: initial: whole disks, no parent. delta: what changed since the parent. resync: the same, found by comparison or read
#: whole because change tracking was lost; older points are kept. final: the last delta of a planned failover.
#: seed: what the replica read from an existing copy; it is like the VM's disks, never more, and no recovery point.
#: adopted: the VM's own old disks with what they had never sent, when their host became the replica; made there only.
PointKind = Literal["initial", "delta", "resync", "final", "seed", "adopted"]
Consistency = Literal["crash", "application"]
#: How a disk is read for a point: whole; what its bitmap says has changed; all of it, compared with its fingerprint.
DiskMode = Literal["whole", "delta", "compare"]

#: qcow2's own limit at 64 KiB clusters is 2 EiB; QEMU's is 8 EiB - 512. We stop at 256 TiB: tables stay in memory.
MAX_DISK = 256 << 40
MAX_DEFINITION = 1 << 20

DiskSize = Annotated[int, Field(gt=0, le=MAX_DISK, multiple_of=512)]


class DiskSpec(Shape):
    """One replicated disk at a point: its target in the domain and its virtual size in bytes."""

    target: DiskTarget
    size: DiskSize


class PointOpening(Shape):
    """What a primary says before it sends a point's segments; the replica believes none of it unchecked."""

    vm: VmId
    name: VmName
    point: PointId
    parent: PointId | None
    kind: PointKind
    consistency: Consistency = "crash"
    instant: AwareDatetime
    epoch: Annotated[int, Field(ge=0)]
    checkpoint: CheckpointName | None
    disks: Annotated[tuple[DiskSpec, ...], Field(min_length=1, max_length=64)]
    #: How each disk is read: so that a killed agent goes on in the same way, and for the history.
    modes: dict[DiskTarget, DiskMode] = Field(default_factory=dict, max_length=64)
    definition: Annotated[str, Field(max_length=MAX_DEFINITION)]
    #: UEFI variables and TPM state, read just before the instant, and why something of it is missing.
    machine: MachineFiles = ()
    machine_remarks: Remarks = ()
    interval: Annotated[int, Field(ge=5, le=86400)]
    keep: Keep
    #: Why it is crash-consistent although it should have been application-consistent; empty: nothing failed.
    quiesce_failure: Remark = ""
    #: How often it should be: the replica keeps the rule for when the roles are swapped.
    app_consistent: AppConsistent = NEVER

    @model_validator(mode="after")
    def _coherent(self) -> "PointOpening":
        require_acceptable(self.machine)
        targets = [disk.target for disk in self.disks]
        if len(set(targets)) != len(targets):
            raise ValueError("a disk is named twice")
        if self.kind == "adopted":
            raise ValueError("an adopted point is never sent")
        if self.kind != "resync" and (self.parent is None) != (self.kind in {"initial", "seed"}):
            raise ValueError("a delta needs a parent, an initial copy has none")
        return self


class DiskClosing(Shape):
    """How many segments a disk's part of a point has, and where its data ends in the image file."""

    target: DiskTarget
    segments: Annotated[int, Field(ge=0)]
    data_end: Annotated[int, Field(ge=CLUSTER)]
    #: What the whole disk holds at the point; None: the primary has no fingerprint of it.
    proof: Proof | None = None


class PointClosing(Shape):
    """Sent when every segment is at the replica: lets it notice a missing one."""

    disks: Annotated[tuple[DiskClosing, ...], Field(min_length=1, max_length=64)]
    #: Bytes read from the guest and bytes sent, for history and statistics.
    guest_bytes: Annotated[int, Field(ge=0)]


class BaseDevice(Shape):
    """A block device of the replica that holds a base, raw from its first byte on."""

    path: DevicePath
    #: How the kernel knows it again after a reboot; empty when it has no such mark.
    identity: str


class AdoptedBase(Shape):
    """The VM's own old disk, which is the base in place since its host became the replica."""

    #: Absolute; or inside the replica's directory ``base/<target>.qcow2``, when it was in the store before.
    path: Annotated[str, StringConstraints(pattern=r"^(/[^\x00-\x1f\x7f]+|base/[a-z0-9]+\.qcow2)$", max_length=1000)]
    format: Literal["qcow2", "raw"]
    #: How the kernel knows a block device again, as of a ``BaseDevice``; empty for a file.
    identity: str = ""
    #: Absolute paths of all further files that it reads from: backing files, a data file.
    below: tuple[ImagePath, ...] = ()


class DiskManifest(Shape):
    """One disk's image file inside a published point."""

    target: DiskTarget
    size: DiskSize
    file: str
    file_bytes: Annotated[int, Field(ge=0)]
    #: xxh3-128 (hex) of the tables and header, that is of everything that is not in a segment.
    tables_digest: str
    segments: Annotated[int, Field(ge=0)]
    #: Whether sums were kept from the beginning: of the blocks of patches, of a folded image's tables.
    summed: bool = False
    #: Whether its image stands alone though there is a parent; None: where the parent's disk is larger, or absent.
    alone: bool | None = None
    #: The device that holds the content; the image file is then an empty overlay over it.
    device: BaseDevice | None = None
    #: The VM's own old disk that holds the content; the image file is an empty overlay over it as well.
    adopted: AdoptedBase | None = None
    #: Digest of what tells whether somebody else wrote to the device or old disk since it was last written.
    seal: str = ""
    #: What its primary said that it holds; None of points made by older versions, and of those made here.
    proof: Proof | None = None


class Manifest(Shape):
    """``manifest.json``: everything needed to understand a published point without us. Written last: the commit."""

    format: Literal["vmreplica-point-1"] = "vmreplica-point-1"
    vm: VmId
    name: VmName
    point: PointId
    #: The point whose images back these; None when the images stand alone.
    parent: PointId | None
    kind: PointKind
    consistency: Consistency
    instant: AwareDatetime
    published: AwareDatetime
    epoch: int
    checkpoint: CheckpointName | None
    disks: tuple[DiskManifest, ...]
    #: What the machine kept outside its disks; the files stand beside the images.
    machine: MachineEntries = ()
    machine_remarks: Remarks = ()
    #: Why it is crash-consistent although it should have been application-consistent.
    quiesce_failure: Remark = ""
    #: SHA-256 (hex) of ``definition.xml``; empty of points from before it was kept.
    definition_sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""
    guest_bytes: int
    wire_bytes: int
    #: True once older points were folded into these images: their segment digests no longer apply, each compressed
    #: frame's own checksum does.
    folded: bool = False
    #: True once images of older points were merged into these: indexes and sums describe them, no segments do.
    merged: bool = False
    #: xxh3-128 (hex) of everything else in here (see ``repository.manifests``); empty of manifests from before.
    digest: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{32})?$")] = ""


class PointSummary(Shape):
    """A published point in lists and in the replica's answer about its position."""

    point: PointId
    parent: PointId | None
    kind: PointKind
    consistency: Consistency
    instant: AwareDatetime
    published: AwareDatetime
    checkpoint: CheckpointName | None
    disks: tuple[DiskSpec, ...]
    guest_bytes: int
    wire_bytes: int
    stored_bytes: int
    holds: tuple[str, ...] = ()
    #: The point below it (or itself) that travels in an export: until it is imported this one cannot be used.
    waits_for: PointId | None = None
    #: Why it is crash-consistent although it should have been application-consistent; empty: nothing failed.
    quiesce_failure: Remark = ""
    #: What came of the last boot test from it.
    boot_test: BootResult | None = None
    #: What its primary said that its disks hold.
    proofs: dict[DiskTarget, Proof] = Field(default_factory=dict)
    #: What verifying it came to last.
    verified: Verified | None = None
    #: What is wrong in it, because files rotted: it is not used unless a person says so. Empty: nothing is known to be.
    damaged: tuple[str, ...] = ()

    @property
    def bootable(self) -> bool:
        """Tell whether it is a recovery point: the state of the VM's disks at one instant."""
        return self.kind != "seed"


class HeldSegments(Shape):
    """Which segments of one disk the replica holds durably: half-open ranges of segment numbers."""

    target: DiskTarget
    ranges: tuple[tuple[int, int], ...] = ()


class IncomingPoint(Shape):
    """A point under construction at the replica."""

    point: PointId
    held: tuple[HeldSegments, ...]


class Seeding(Shape):
    """How the replica gets on with reading an existing copy; bytes are those of the copy's disks."""

    phase: str
    done_bytes: Annotated[int, Field(ge=0)] = 0
    total_bytes: Annotated[int, Field(ge=0)] = 0
    #: Bytes per second.
    rate: Annotated[float, Field(ge=0)] = 0.0
    #: Why it ended without a seed; a person has to decide how to go on.
    failed: Problem | None = None


class Position(Shape):
    """The replica's truth about a relationship: after any error the sender forgets its own and asks for this."""

    vm: VmId
    state: str
    epoch: int
    latest: PointSummary | None
    incoming: IncomingPoint | None
    free_bytes: int
    #: How many recovery points the replica keeps.
    points: int = 0
    #: The exported point that all others wait for, until it is imported.
    awaited: PointId | None = None
    #: Set while the replica makes its first point from an existing copy, or has failed to.
    seeding: Seeding | None = None
    #: Texts of what the replica has to complain about (store nearly full, failed over, ...).
    complaints: tuple[str, ...] = ()
    #: What is known there of the worth of its points and of its room, for health here.
    reasons: tuple[Reason, ...] = ()
    #: What the newest point reads wrong, because files rotted: the next point shall bring it whole.
    repairs: Repairs = ()
    #: What verifying came to last, of the newest point that was verified.
    verified: Verified | None = None

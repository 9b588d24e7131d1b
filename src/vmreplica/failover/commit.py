"""Keeping a failover for good: the plan, and folding the chain below the running VM, in steps that survive a crash.

The state and the images to fold into are persisted first (``Replica.committing``), the rest is told by libvirt and
the files: a disk is done when its definition names the lowest image and its writable layer is gone. So all of it is
simply done again after a crash of the agent, of libvirtd or of the VM, until it is done.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from vmreplica.failover.plan import StepHook
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.blockjobs import LiveDisk
from vmreplica.model.errors import Conflict, HypervisorError, VmReplicaError
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import PointSummary
from vmreplica.model.report import FailoverPlan, FailoverStep
from vmreplica.model.states import Event, State, transition
from vmreplica.model.units import MiB, format_size
from vmreplica.qcow2.tools import chain_info, data_above
from vmreplica.repository import Replica, ReplicaRecord

#: Room beyond the data that is written again: tables of the images, and what the guest writes meanwhile.
SLACK: Final = 64 * MiB


class Watch(Protocol):
    """Who looks on while images are folded."""

    def progress(self, target: DiskTarget, done: int, total: int) -> None:
        """Take note of a disk's progress, in bytes."""

    def wait(self) -> None:
        """Wait a moment before the job is looked at again; raises whatever shall end the looking."""


def plan_commit(record: ReplicaRecord, points: Sequence[PointSummary], *, running: bool, needed: int) -> FailoverPlan:
    """Plan to keep a failover for good. Pure.

    Args:
        record: the relationship on this side.
        points: its recovery points, newest first.
        running: whether the VM runs here.
        needed: bytes of data to be written again.

    Raises:
        Conflict: ``state-forbids``; ``vm-not-running``.
    """
    transition(record.name, State(record.state), Event.COMMIT)
    if record.failover is None:
        raise VmReplicaError("failover-record-missing", f"{record.name} has no failover record")
    require_running(record, running=running)
    name, point = record.name, record.failover.point
    chosen = next((known for known in points if known.point == point), points[0])
    newer = sum(1 for known in points if known.point > point)
    disks = ", ".join(disk.target for disk in chosen.disks)
    return FailoverPlan(
        vm=record.vm,
        name=name,
        kind="commit",
        point=point,
        instant=chosen.instant,
        loses_seconds=0.0,
        newer_points=newer,
        steps=(
            FailoverStep(name="give-up", text=f"give up {_points(len(points))} of {name} held here"),
            FailoverStep(
                name="fold",
                text=f"fold {disks} into one image each while it runs, writing {format_size(needed)} again at most",
            ),
            FailoverStep(name="remove", text="remove the files that were folded"),
        ),
        warnings=_warnings(newer),
        after=(
            f"here: {name} runs on one image per disk below the store, which vmreplica disable does not delete",
            f"on the old primary: nothing changes; vmreplica reverse {name} makes it the replica",
        ),
    )


def require_running(record: ReplicaRecord, *, running: bool) -> None:
    """Refuse to begin while the VM is off.

    Raises:
        Conflict: ``vm-not-running``.
    """
    if not running:
        raise Conflict(
            "vm-not-running",
            f"{record.name} is off: its images are folded while it runs",
            hint=f"virsh start {record.name}",
        )


def needed_bytes(replica: Replica) -> int:
    """Tell how many bytes folding writes to the store at most.

    Raises:
        HypervisorError, TimedOut: an image cannot be read.
    """
    found, root = 0, _real(replica.dir)
    for image in sorted(replica.run_dir.glob("*.qcow2")):
        ours = [link for link in chain_info(image, "qcow2") if _real(Path(link["filename"])).is_relative_to(root)]
        found += data_above(image, len(ours) - 1)
    return found


def fold_disks(replica: Replica, hypervisor: Hypervisor, watch: Watch, before: StepHook) -> int:
    """Do all that is left of a commit that was begun.

    Args:
        replica: its record says what is to be folded into what.
        hypervisor: this host's libvirt.
        watch: who looks on.
        before: observer of steps.

    Returns:
        Bytes that were given back to the file system.

    Raises:
        Conflict: ``vm-not-running``: it goes on when it is tried again; ``disk-moved``: a person has to look.
        HypervisorError: ``vm-busy``; ``fold-failed``.
        VmReplicaError: it may be tried again.
    """
    freed, vm = 0, replica.record.vm
    for target, name in sorted(replica.record.live.items()):
        lowest = replica.dir / name
        if hypervisor.running(vm):
            _fold(_Fold(replica, hypervisor, target, _real(lowest)), watch, before)
        elif _stands_above(replica, hypervisor, target, lowest):
            require_running(replica.record, running=False)
        # libvirt's own name for the image leads through directories that go some day.
        before(f"define {target}")
        hypervisor.configure_image(vm, target, lowest)
        before(f"layer {target}")
        freed += replica.committing.remove_layer(target)
    before("remove")
    return freed + replica.committing.end()


class _Fold:
    """One disk of a commit, and what is known of it."""

    def __init__(self, replica: Replica, hypervisor: Hypervisor, target: DiskTarget, lowest: Path) -> None:
        self.vm, self.name = replica.record.vm, replica.record.name
        self.hypervisor = hypervisor
        self.target = target
        self.lowest = lowest
        self.layer = _real(replica.run_dir / f"{target}.qcow2")

    def look(self) -> LiveDisk:
        """Look at the disk, and see that nobody else works on it."""
        disk = self.hypervisor.live_disk(self.vm, self.target)
        if disk.top not in {self.lowest, self.layer}:
            raise Conflict(
                "disk-moved",
                f"disk {self.target} of {self.name} runs on {disk.top}, not on the layer of its failover",
                hint=f"merge what was put above it (virsh blockcommit {self.name} {self.target} --active --pivot "
                f"--base {self.layer}); it goes on by itself then",
            )
        if disk.foreign or disk.into not in {None, self.lowest}:
            raise HypervisorError(
                "vm-busy",
                f"another job works on disk {self.target} of {self.name}",
                hint=f"it goes on by itself then; virsh blockjob {self.name} {self.target} shows it",
                kind="transient",
            )
        return disk


def _fold(fold: _Fold, watch: Watch, before: StepHook) -> None:
    """Bring a running disk upon its lowest image, whatever of that was done before."""
    begun = False
    while (disk := fold.look()).top != fold.lowest:
        if disk.ready:
            before(f"pivot {fold.target}")
            fold.hypervisor.pivot(fold.vm, fold.target)
        elif disk.into is not None:
            begun = True
            watch.progress(fold.target, disk.done, disk.total)
            watch.wait()
        elif begun:
            raise HypervisorError(
                "fold-failed",
                f"folding disk {fold.target} of {fold.name} ended early; the VM runs on, nothing is lost",
                hint="see whether the store is full, and QEMU's log; it is tried again by itself",
                kind="operator",
            )
        else:
            before(f"fold {fold.target}")
            fold.hypervisor.begin_commit(fold.vm, fold.target, _name_of_lowest(fold, disk))
            begun = True


def _name_of_lowest(fold: _Fold, disk: LiveDisk) -> str:
    name = disk.below.get(fold.lowest)
    if name is None:
        raise Conflict(
            "disk-moved",
            f"disk {fold.target} of {fold.name} does not stand on {fold.lowest}",
            hint=f"virsh dumpxml {fold.name} shows what it stands on",
        )
    return name


def _stands_above(replica: Replica, hypervisor: Hypervisor, target: DiskTarget, lowest: Path) -> bool:
    """Tell of a VM that is off whether a disk is still to be folded.

    A layer that is gone was folded, whatever the definition says: the host lost power before that was written.
    """
    layer = replica.run_dir / f"{target}.qcow2"
    return layer.exists() and hypervisor.configured_image(replica.record.vm, target) != _real(lowest)


def _points(count: int) -> str:
    return f"all {count} recovery points" if count != 1 else "the only recovery point"


def _warnings(newer: int) -> tuple[str, ...]:
    warnings = ["the failover cannot be taken back any more, and no other point can be tried"]
    if newer:
        warnings.append(f"{newer} of the points are newer than the one the VM was started from")
    return tuple(warnings)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))

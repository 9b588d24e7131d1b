"""The facts that a cycle's decisions rest on: asked anew before each step from libvirt, the replica and the spool.

It looks and changes nothing, with one exception: a checkpoint that libvirt forgot is made known to it again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from vmreplica.agent.decide import CycleFacts, DiskFacts, SpoolFacts
from vmreplica.agent.holdings import Holdings
from vmreplica.agent.quiescing import Quiescer
from vmreplica.agent.rest import Identities, RestBook
from vmreplica.agent.transfer import TransferLimits
from vmreplica.fingerprint import FingerprintStore
from vmreplica.hypervisor import BackupJob, DiskView, DomainView, Hypervisor
from vmreplica.hypervisor.machine import Machine, MachineStore
from vmreplica.model.damage import Repairs
from vmreplica.model.errors import HypervisorError
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import PointSummary, Position
from vmreplica.model.policy import Policy
from vmreplica.peer.client import PeerClient
from vmreplica.spool import Spool

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What every cycle on this host shares."""

    hypervisor: Hypervisor
    spool: Spool
    spool_dir: Path
    fingerprints: FingerprintStore
    rest: RestBook
    quiescer: Quiescer
    limits: TransferLimits


class FactFinder:
    """Asks for one VM, in one cycle, and keeps what the cycle itself has learnt about its disks.

    Args:
        stages: libvirt, spool and fingerprints of this host.
        client: the replica.
        vm: whose facts.
        policy: its policy at this moment.
        seen: called with each position the replica tells.
    """

    def __init__(
        self, *, stages: Stages, client: PeerClient, vm: VmId, policy: Policy, seen: Callable[[Position], None]
    ) -> None:
        self._hypervisor = stages.hypervisor
        self._spool = stages.spool
        self._rest = stages.rest
        self._client = client
        self._vm = vm
        self.policy = policy
        self._seen = seen
        self._holdings = Holdings(stages.fingerprints, client, vm)
        self._view: DomainView | None = None
        #: The replica's latest point when last asked.
        self.latest: PointSummary | None = None
        #: What it asked then to be brought again.
        self.repairs: Repairs = ()
        #: The backup job of the spooled point, when it outlived the agent that began it.
        self.job: BackupJob | None = None
        #: Disks whose bitmaps turned out to be broken, and why.
        self.trouble: dict[DiskTarget, str] = {}
        #: Disks whose fingerprint the replica could not tell.
        self.unfetchable: set[DiskTarget] = set()

    def ask(self) -> CycleFacts:
        """Gather everything anew.

        Raises:
            VmReplicaError: libvirt or the replica does not answer.
        """
        position = self._client.position(self._vm)
        self._seen(position)
        self.latest, self.repairs = position.latest, position.repairs
        view = self._hypervisor.inspect(self._vm)
        self._view = view
        return CycleFacts(
            replica=self.policy.replica,
            epoch=self.policy.epoch,
            position=position,
            running=view.active,
            at_rest=position.latest is not None and self.at_rest(position.latest.point),
            disks={target: self._disk(disk, position) for target, disk in self.disks().items()},
            checkpoints=self._checkpoints(view, position),
            spool=self._pending(),
            last=self.policy.planned is not None,
        )

    @property
    def view(self) -> DomainView:
        """The domain as last seen."""
        if self._view is None:
            self._view = self._hypervisor.inspect(self._vm)
        return self._view

    @property
    def name(self) -> str:
        """The domain's name if it is known yet, else its UUID: for messages."""
        return self._view.name if self._view else self._vm

    def at_rest(self, point: PointId) -> bool:
        """Tell whether the VM is off, and its disks and its definition are what a point was taken from."""
        return not self.view.active and self._rest.rests(self._vm, point, self._described(self._images()))

    def lay_to_rest(self, point: PointId, images: Identities | None = None) -> None:
        """Take note that a point is taken, or was, from stopped images; from what they are now, if not told."""
        described = self._described(images or self._images())
        if described is not None:
            self._rest.remember(self._vm, point, described)

    def _images(self) -> Identities | None:
        return self._hypervisor.image_identities(self._vm, tuple(self.disks()))

    def machine(self) -> Machine:
        """Read what the VM keeps outside its disks, now."""
        return MachineStore().read(self._vm, self.view.definition)

    def _described(self, images: Identities | None) -> Identities | None:
        """Add the definition, which is part of a point, too, and what else is."""
        if images is None:
            return None
        machine = {f"machine {file.name}": file.sha256 for file in self.machine().files}
        return {**images, **machine, "definition": hashlib.sha256(self.view.definition.encode()).hexdigest()}

    def disks(self) -> dict[DiskTarget, DiskView]:
        """Choose the disks that are replicated now."""
        return replicated_disks(self.view, self.policy)

    def _disk(self, disk: DiskView, position: Position) -> DiskFacts:
        return DiskFacts(
            size=disk.size,
            tracked=disk.tracked,
            fingerprint_good=self._holdings.good(disk.target, position.latest),
            trouble=self.trouble.get(disk.target) or self._room_lost(disk, position),
            unfetchable=disk.target in self.unfetchable,
        )

    def _room_lost(self, disk: DiskView, position: Position) -> str | None:
        """Say once, while the base still knows its bitmap, that a disk was moved to where it can have none."""
        base = position.latest.checkpoint if position.latest else None
        if disk.tracked or base is None or disk.target not in self._hypervisor.checkpoint_disks(self._vm, base):
            return None
        return disk.reason_untracked

    def _checkpoints(self, view: DomainView, position: Position) -> tuple[str, ...]:
        """List the checkpoints; the base is made known to libvirt again if it was lost there but not in the images."""
        known = self._hypervisor.checkpoints(self._vm)
        base = position.latest.checkpoint if position.latest else None
        if view.active and base is not None and base not in known:
            try:
                lost = self._hypervisor.checkpoint_usable(self._vm, base, ())
            except HypervisorError as error:
                # Its disks are not those of the VM any more, for example: a whole copy will do.
                lost = error.message
            _log.info("base checkpoint was unknown to libvirt", vm=self._vm, checkpoint=base, lost=lost)
            known = self._hypervisor.checkpoints(self._vm)
        return tuple(known)

    def _pending(self) -> SpoolFacts | None:
        point = self._spool.point(self._vm)
        if point is None:
            return None
        complete = point.closing is not None
        checkpoint = point.opening.checkpoint
        if not complete and checkpoint is not None:
            self.job = self._hypervisor.attach_backup(self._vm, checkpoint)
        return SpoolFacts(opening=point.opening, complete=complete, job_runs=self.job is not None)


def replicated_disks(view: DomainView, policy: Policy) -> dict[DiskTarget, DiskView]:
    """Choose the disks of a VM that are replicated, by target."""
    chosen = (disk for disk in view.disks if disk.reason_ineligible is None and disk.target not in policy.excluded)
    return {disk.target: disk for disk in chosen}

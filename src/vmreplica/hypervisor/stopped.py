"""The disks of a VM that is off: frozen by nature, served to the same readers as the view of a backup job.

A qemu-nbd of ours reads each image without any lock, so that the VM may be started at any moment: then what was read
is worth nothing, and ``require_undisturbed`` says so. A bitmap that begins now is put into each image that can hold
one, and kept as a checkpoint: the next point, of the running VM, builds on it as on any other.
"""

import json
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import libvirt
import nbd
import structlog

from vmreplica.hypervisor import checkpoints
from vmreplica.hypervisor.backup import Export
from vmreplica.hypervisor.backup_xml import render_known_checkpoint
from vmreplica.hypervisor.bases import Plan, tracking_lost
from vmreplica.hypervisor.checkpoints import CheckpointShelf
from vmreplica.hypervisor.disks import DiskElement, qcow2_head, reason_untracked
from vmreplica.hypervisor.images import Image, bitmap_trouble, has_writer, identity, qemu_img, read_chain
from vmreplica.hypervisor.inspection import disks_of, guest_size
from vmreplica.hypervisor.job_files import JobFiles
from vmreplica.hypervisor.room import require_room
from vmreplica.model.errors import BadRequest, Conflict, HypervisorError, VmReplicaError

_log: Final = structlog.get_logger(__name__)

#: Seconds until a server must answer, and for it to end.
_START_LIMIT: Final = 20.0
_END_LIMIT: Final = 10.0
_STEP: Final = 0.02
_CLIENTS: Final = 64


class StoppedView:
    """All disks of a VM that is off; leaving its ``with`` block ends the servers. They end with this process, too.

    Args:
        name: of the VM, for messages.
        images: of each disk.
        active: tells whether the VM runs.
    """

    def __init__(self, name: str, images: Mapping[str, tuple[Image, ...]], active: Callable[[], bool]) -> None:
        #: By disk target.
        self.exports: dict[str, Export] = {}
        self._name = name
        self._images = images
        self._active = active
        self._servers: list[_Server] = []
        #: What the images were when reading began, by disk target.
        self.identities = {target: identity(chain) for target, chain in images.items()}

    def serve(self, disk: DiskElement, export: Export) -> None:
        """Serve one more disk.

        Raises:
            HypervisorError: ``qemu-nbd-failed``.
        """
        self._servers.append(_Server(disk, export))
        self.exports[disk.target] = export

    def scratch_bytes(self) -> int:
        """Tell the bytes of scratch: a stopped VM needs none."""
        return 0

    def require_undisturbed(self) -> None:
        """Check that everything read until now is of one and the same instant.

        Raises:
            Conflict: ``vm-started``: the VM was started, or another program wrote to an image.
        """
        if self._active():
            raise started(self._name)
        for target, chain in self._images.items():
            if has_writer(chain[0].path) or identity(chain) != self.identities[target]:
                raise _changed(self._name, target)

    def leave(self) -> None:
        """End the servers: others can be started for the same images as long as these stay as they are."""
        self.end()

    def end(self) -> None:
        """End the servers; again is harmless."""
        for server in self._servers:
            server.end()
        self._servers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class _Server:
    """A qemu-nbd of one disk. It ends when its last client is gone, and we are one all the time."""

    def __init__(self, disk: DiskElement, export: Export) -> None:
        bitmap = [] if export.bitmap is None else [f"--bitmap={export.bitmap}"]
        self._keeper = nbd.NBD()
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                ["qemu-nbd", "--read-only", f"--socket={export.socket}", f"--shared={_CLIENTS}",
                 f"--export-name={export.name}", *bitmap, _source(disk)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
            try:
                self._connect(export)
            except nbd.Error as error:
                self.end()
                said.seek(0)
                raise HypervisorError(
                    "qemu-nbd-failed",
                    f"the stopped image {disk.path} cannot be served: "
                    f"{said.read(2000).decode(errors='replace').strip() or error}",
                    hint=f"qemu-img check {disk.path}",
                ) from error

    def end(self) -> None:
        """Hang up and end it."""
        self._keeper = nbd.NBD()
        self._process.terminate()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _connect(self, export: Export) -> None:
        deadline = time.monotonic() + _START_LIMIT
        self._keeper.set_export_name(export.name)
        while True:
            try:
                self._keeper.connect_unix(str(export.socket))
            except nbd.Error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                self._keeper = nbd.NBD()
                self._keeper.set_export_name(export.name)
                time.sleep(_STEP)
            else:
                return


def begin(
    domain: libvirt.virDomain, plan: Plan, shelf: CheckpointShelf, files: JobFiles, active: Callable[[], bool]
) -> StoppedView:
    """Serve the disks of a VM that is off, and begin a bitmap for the next point.

    An image that takes no bitmap now is compared the next time.

    Args:
        domain: the VM.
        plan: what it builds on.
        shelf: for the new checkpoint.
        files: for the sockets.
        active: tells the view, as long as it is used, whether the VM runs.

    Raises:
        Conflict: ``vm-started``, ``vm-moved-away``, ``image-in-use``.
        BadRequest: ``disk-unknown``.
        CheckpointBroken: a base's bitmap is not to be had of some disks (``checkpoint-broken``).
        HypervisorError: ``stopped-image-unreadable``, ``qemu-nbd-failed``.
        NoSpace: no room beside an image for a bitmap.
    """
    disks = _disks(domain, plan)
    chains = {target: read_chain(str(disk.path), disk.format) for target, disk in disks.items()}
    # First, as bitmaps look broken while somebody has their image open.
    _require_free(plan.name, chains)
    _require_bases(plan, disks, chains)
    try:
        _anchor(domain, plan, disks, shelf)
        files.prepare(plan.vm, plan.checkpoint, None)
        view = StoppedView(plan.name, chains, active)
        _serve(domain, plan, disks, view, files)
    except BaseException:
        files.remove(plan.vm, plan.checkpoint)
        try:
            checkpoints.delete(domain, shelf, plan.vm, plan.checkpoint)
        except (libvirt.libvirtError, VmReplicaError) as second:
            _log.warning("a checkpoint is left for the next cycle", vm=plan.vm, why=str(second))
        raise
    return view


def identities(domain: libvirt.virDomain, targets: frozenset[str]) -> dict[str, str] | None:
    """Tell what the images of a VM that is off are now; None when it runs.

    Raises:
        HypervisorError: ``stopped-image-unreadable``.
    """
    if domain.isActive():
        return None
    disks = disks_of(domain, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    wanted = [disk for disk in disks if disk.target in targets and disk.path is not None]
    return {disk.target: identity(read_chain(str(disk.path), disk.format)) for disk in wanted}


def started(name: str) -> Conflict:
    """Say that a VM that was off runs now."""
    return Conflict(
        "vm-started",
        f"{name} was started while its stopped disks were read: that point is not taken",
        hint="the next point is taken from the running VM, by itself",
        kind="transient",
    )


def _changed(name: str, target: str) -> Conflict:
    return Conflict(
        "vm-started",
        f"disk {target} of {name} was written to while it was read, though the VM is off: that point is not taken",
        hint="it is tried again when the other program has ended, or the VM was started",
        kind="transient",
    )


def _disks(domain: libvirt.virDomain, plan: Plan) -> dict[str, DiskElement]:
    if domain.isActive():
        raise started(plan.name)
    if domain.state() == [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED]:
        raise Conflict(
            "vm-moved-away",
            f"{plan.name} was migrated to another host: its disks here are not what it works with",
            hint=f"on the replica: vmreplica hand-over {plan.name} --to HOST; here: virsh undefine {plan.name}",
        )
    found = disks_of(domain, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    disks = {disk.target: disk for disk in found if disk.target in plan.bases and disk.path is not None}
    missing = sorted(set(plan.bases) - set(disks))
    if missing:
        hint = f"virsh domblklist {plan.name} names its disks"
        raise BadRequest("disk-unknown", f"{plan.name} has no disk {', '.join(missing)}", hint=hint)
    return disks


def _require_bases(plan: Plan, disks: Mapping[str, DiskElement], chains: Mapping[str, tuple[Image, ...]]) -> None:
    checkpoints.require_ours(plan.checkpoint)
    trouble = {}
    for target, base in plan.bases.items():
        why = None if base is None else bitmap_trouble(chains[target], base)
        if why is not None:
            trouble[target] = f"{target} ({disks[target].path}): {why}"
    if trouble:
        raise tracking_lost(plan.name, "; ".join(trouble.values()), frozenset(trouble))


def _require_free(name: str, chains: Mapping[str, tuple[Image, ...]]) -> None:
    for target, chain in chains.items():
        if has_writer(chain[0].path):
            raise Conflict(
                "image-in-use",
                f"{name} is off, but another program has the image of {target} open to write: {chain[0].path}",
                hint=f"it is tried again; lsof {chain[0].path} names the program",
                kind="transient",
            )


def _anchor(domain: libvirt.virDomain, plan: Plan, disks: Mapping[str, DiskElement], shelf: CheckpointShelf) -> None:
    """Begin a bitmap in each image. Kept first: so that a half made checkpoint can be taken away after a crash."""
    tracked = [disk for disk in disks.values() if reason_untracked(disk, _version(disk)) is None]
    if not tracked:
        return
    definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    require_room(plan.name, tracked)
    document = render_known_checkpoint(plan.checkpoint, [disk.target for disk in tracked], definition)
    shelf.keep(plan.vm, plan.checkpoint, document)
    for disk in tracked:
        done = qemu_img("bitmap", "--add", "-f", "qcow2", str(disk.path), plan.checkpoint)
        if done.returncode:
            _log.warning("no bitmap in a stopped image", vm=plan.vm, disk=disk.target, why=done.stderr.strip())


def _serve(
    domain: libvirt.virDomain, plan: Plan, disks: Mapping[str, DiskElement], view: StoppedView, files: JobFiles
) -> None:
    try:
        for target, disk in disks.items():
            socket = files.stopped_socket(plan.vm, plan.checkpoint, target)
            view.serve(disk, Export(socket, target, guest_size(domain, target), plan.bases[target]))
    except BaseException:
        view.end()
        raise


def _version(disk: DiskElement) -> int | None:
    head = qcow2_head(disk.path) if disk.format == "qcow2" else None
    return None if head is None else head.version


def _source(disk: DiskElement) -> str:
    """Name an image for QEMU with its format said, so that nothing in it is believed about that, and without locks."""
    block = stat.S_ISBLK(Path(str(disk.path)).stat().st_mode)
    protocol = {"driver": "host_device" if block else "file", "filename": disk.path}
    return "json:" + json.dumps({"driver": disk.format, "force-share": True, "file": protocol})

"""Block devices for bases: who may have which one, and that it still is the one it was."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vmreplica.fsio.blockdev import contents, look, opened_alone, require_unused, seal
from vmreplica.model.errors import Conflict, Corrupt, NoSpace, Refused, VmReplicaError
from vmreplica.model.ids import DevicePath, DiskTarget, VmName
from vmreplica.model.point import BaseDevice, DiskManifest, Manifest
from vmreplica.model.policy import BaseWish
from vmreplica.model.units import format_size
from vmreplica.qcow2.shim import shim_digest
from vmreplica.repository.record import ReplicaRecord


def assign(
    name: VmName,
    wishes: Mapping[DiskTarget, BaseWish],
    *,
    held: Mapping[DiskTarget, BaseDevice],
    others: Collection[tuple[BaseDevice, VmName]],
    allowed: Sequence[str],
    erase: bool,
) -> dict[DiskTarget, BaseDevice]:
    """Give devices to the bases of a VM's disks; nothing is written to them yet.

    Args:
        name: of the VM.
        wishes: device and disk size by target.
        held: what its disks have already.
        others: what bases of other VMs stand on, and whose they are.
        allowed: patterns of devices that this host's configuration gives away.
        erase: whether a person agreed that their content is lost.

    Returns:
        All devices of its disks, those it had and new ones.

    Raises:
        Refused: ``base-device-forbidden``: the configuration does not allow it.
        Conflict: ``base-device-differs``, ``base-device-taken``, ``device-in-use``; ``base-device-unconfirmed``: its
            message says what would be lost.
        NoSpace: ``base-device-small``.
        NotFound, BadRequest: see ``blockdev.look``.
    """
    given, lost = dict(held), []
    for target, wish in sorted(wishes.items()):
        if target in held:
            _require_same(name, target, held[target], wish)
            continue
        _require_allowed(wish.device, allowed)
        device, text = _checked(target, wish)
        _require_free(device, [*others, *((own, f"another disk of {name}") for own in given.values())])
        given[target] = device
        lost.append(text)
    if lost and not erase:
        raise Conflict(
            "base-device-unconfirmed",
            f"all that is on the replica's {'; '.join(lost)} would be lost",
            hint="look at it on the replica; --yes agrees to losing it",
        )
    return given


def _require_same(name: VmName, target: DiskTarget, held: BaseDevice, wish: BaseWish) -> None:
    if held.path != wish.device:
        raise Conflict(
            "base-device-differs",
            f"the base of disk {target} of {name} stands on {held.path} already",
            hint=f"to move it: vmreplica disable {name} --delete-copy, then enable it with the other device",
        )


def verify(device: BaseDevice, size: int) -> None:
    """Make sure that a device is there, is the one it was, and has room for a disk.

    Raises:
        Corrupt: ``base-device-changed``.
        NoSpace: ``base-device-small``.
        NotFound, BadRequest: see ``blockdev.look``.
    """
    found = look(device.path)
    if found.identity != device.identity:
        raise Corrupt(
            "base-device-changed",
            f"{device.path} is another device now: it was {device.identity or 'without a mark'}, "
            f"it is {found.identity or 'without a mark'}",
            hint="bring the former device back under this name; nothing is written to this one",
            kind="operator",
        )
    if found.size < size:
        raise NoSpace(
            "base-device-small",
            f"the disk of {format_size(size)} does not fit on {device.path}, which has {format_size(found.size)}: "
            "recovery points are not folded any more",
            hint=f"make it bigger, for example: lvextend -L {-(-size // 1024)}K {device.path}",
            kind="operator",
        )


def verify_content(disk: DiskManifest, device: BaseDevice) -> None:
    """Make sure that the device of a disk is the one it was written to, and nobody else wrote there.

    Raises:
        Corrupt: ``base-device-changed``.
        VmReplicaError: see ``verify``.
    """
    verify(device, disk.size)
    if seal_of(device, disk.size) != disk.seal:
        raise Corrupt(
            "base-device-changed",
            f"{device.path}, which holds the base of disk {disk.target}, was written by somebody else",
            hint="disable the VM with --delete-copy and protect it again: its recovery points cannot be trusted",
            kind="operator",
        )


@contextlib.contextmanager
def writable(device: BaseDevice, size: int) -> Iterator[int]:
    """Open a base's device for writing; nobody can mount it meanwhile.

    Raises:
        Conflict: ``device-in-use``.
        VmReplicaError: see ``verify``.
    """
    verify(device, size)
    with opened_alone(device.path) as fd:
        yield fd


def on_device(disk: DiskManifest, image: Path, device: BaseDevice) -> DiskManifest:
    """Describe a base that was written to a device, and whose image is the shim over it.

    Raises:
        NotFound: ``device-missing``.
        OSError: the image or the device cannot be read.
    """
    changes = {
        "file_bytes": image.stat().st_size,
        "tables_digest": shim_digest(image),
        "device": device,
        "seal": seal_of(device, disk.size),
    }
    return disk.model_copy(update=changes)


def seal_of(device: BaseDevice, size: int) -> str:
    """Digest samples of the disk on a device, which was verified just before.

    Raises:
        OSError: the device failed.
    """
    with Path(device.path).open("rb", buffering=0) as fh:
        return seal(fh.fileno(), size)


def complaints(record: ReplicaRecord, newest: Manifest | None) -> list[str]:
    """Tell what is wrong with the devices of a replica, for people."""
    sizes = {disk.target: disk.size for disk in newest.disks} if newest is not None else {}
    found: list[str] = []
    for target, device in sorted(record.base_devices.items()):
        try:
            verify(device, sizes.get(target, 0))
        except VmReplicaError as error:
            found.append(f"base of disk {target}: {error.message} ({error.hint})")
    return found


def _require_allowed(device: DevicePath, allowed: Sequence[str]) -> None:
    if not any(PurePosixPath(device).match(pattern) for pattern in allowed):
        raise Refused(
            "base-device-forbidden",
            f"the replica's configuration does not give {device} away for bases",
            hint="on the replica: list it in base_devices of the section [replica], and restart the agent",
        )


def _checked(target: DiskTarget, wish: BaseWish) -> tuple[BaseDevice, str]:
    found = look(wish.device)
    if found.size < wish.size:
        raise NoSpace(
            "base-device-small",
            f"disk {target} has {format_size(wish.size)}, {wish.device} has {format_size(found.size)}",
            hint="name a device at least as big as the disk",
            kind="operator",
        )
    require_unused(wish.device, found.number)
    text = f"{wish.device} ({format_size(found.size)}; {contents(wish.device)})"
    return BaseDevice(path=wish.device, identity=found.identity), text


def _require_free(device: BaseDevice, taken: Collection[tuple[BaseDevice, str]]) -> None:
    for other, whose in taken:
        same_file = os.path.realpath(device.path) == os.path.realpath(other.path)
        if same_file or device.identity == other.identity != "":
            raise Conflict(
                "base-device-taken", f"{device.path} holds a base of {whose} already", hint="name another device"
            )

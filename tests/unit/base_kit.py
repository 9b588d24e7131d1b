"""A repository that keeps bases on block devices, and points with every kind of change."""

import random
from collections.abc import Callable
from pathlib import Path

from point_kit import VM
from repository_kit import OWNER, ZERO, Primary, noise, offer, with_blocks

from vmreplica.model.policy import BaseWish, ReplicaOffer
from vmreplica.model.units import CLUSTER
from vmreplica.repository import Replica, Repository

#: No whole number of clusters, nor of blocks of 4 KiB.
SIZE = 40 * CLUSTER + 1536
MakeDevice = Callable[..., Path]


def open_store(store: Path, *, allowed: tuple[str, ...] = ("/dev/loop*",)) -> Repository:
    repository = Repository(store, base_devices=allowed)
    repository.recover()
    return repository


def wish(devices: dict[str, tuple[Path, int]], *, erase: bool = True, keep: int = 2, name: str = "web") -> ReplicaOffer:
    wishes = {target: BaseWish(device=str(path), size=size) for target, (path, size) in devices.items()}
    return offer(keep=keep, name=name).model_copy(update={"base_devices": wishes, "erase": erase})


def new_replica(store: Path, devices: dict[str, tuple[Path, int]], *, keep: int = 2) -> Replica:
    return open_store(store).create(VM, OWNER, wish(devices, keep=keep))


def fill(replica: Replica, primary: Primary, points: int, *, seed: int = 1) -> None:
    """Send points of noise, zeroes and changed blocks, the last cluster of each disk among them."""
    source = random.Random(seed)
    for turn in range(points):
        changes: dict[str, dict[int, bytes]] = {}
        for target, size in primary.sizes.items():
            last = (size - 1) // CLUSTER
            chosen = [*source.sample(range(last), 8), last]
            changes[target] = {n: _changed(primary.disks[target].get(n, ZERO), turn * 1000 + n, source) for n in chosen}
            changes[target][last] = changes[target][last][: size % CLUSTER or CLUSTER].ljust(CLUSTER, b"\0")
        primary.send(replica, changes)


def _changed(before: bytes, seed: int, source: random.Random) -> bytes:
    return source.choice([ZERO, noise(seed), with_blocks(before, seed), with_blocks(before, seed)])


def on_device(replica: Replica, point: str) -> set[str]:
    """Name the disks of a point whose image is over a device."""
    return {disk.target for disk in replica.point(point).disks if disk.device is not None}


def raw_bytes(device: Path, size: int) -> bytes:
    with device.open("rb") as fh:
        return fh.read(size)

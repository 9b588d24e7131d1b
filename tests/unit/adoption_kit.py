"""Old disks of a VM in every shape, and their adoption."""

import datetime as dt
import json
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from point_kit import VM
from repository_kit import OWNER, START, Primary, noise, open_repository

from vmreplica.model.point import PointOpening
from vmreplica.model.units import CLUSTER
from vmreplica.repository import AdoptedDisk, Adoption, Replica

#: No whole number of clusters, nor of blocks of 4 KiB.
SIZE = 40 * CLUSTER + 1536
POINT = f"{START:%Y%m%dT%H%M%SZ}-0000abcd"
SHAPES = ("qcow2", "qcow2 over another", "raw")


def qemu_img(*arguments: str) -> str:
    run = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def qemu_io(image: Path, form: str, *commands: str) -> None:
    """Do what a guest does."""
    words = [word for command in commands for word in ("-c", command)]
    run = subprocess.run(
        ["qemu-io", "-f", form, *words, str(image)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr + run.stdout


def old_disk(directory: Path, shape: str, content: Mapping[int, bytes], *, size: int = SIZE, name: str = "old") -> Path:
    """Make an image that holds these clusters."""
    raw = directory / f"{name}.raw"
    with raw.open("wb") as fh:
        fh.truncate(size)
        for number, data in content.items():
            fh.seek(number * CLUSTER)
            fh.write(data[: size - number * CLUSTER])
    if shape == "raw":
        return raw
    image = directory / f"{name}.qcow2"
    if shape == "qcow2":
        qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
        raw.unlink()
        return image
    template = directory / f"{name}-template.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(template))
    raw.unlink()
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", template.name, str(image))
    return image


def form_of(path: Path) -> Any:
    return "qcow2" if path.suffix == ".qcow2" else "raw"


def read_old(path: Path) -> bytes:
    """The guest's bytes of an old disk."""
    copy = path.parent / ".old.raw"
    qemu_img("convert", "-f", form_of(path), "-O", "raw", str(path), str(copy))
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()


def bitmaps(path: Path) -> dict[str, list[str]]:
    """The bitmaps in a qcow2 image with their flags, whoever has it open."""
    info = json.loads(qemu_img("info", "-U", "--output=json", str(path)))
    found = info["format-specific"]["data"].get("bitmaps", [])
    return {bitmap["name"]: bitmap["flags"] for bitmap in found}


def adoption(disks: Mapping[str, Path], *, size: int = SIZE, form: Any = None, **fields: object) -> Adoption:
    """What a host says that becomes the replica of the VM it ran."""
    usual: dict[str, object] = {
        "vm": VM,
        "name": "web",
        "owner": OWNER,
        "interval": 60,
        "keep": 2,
        "epoch": 1,
        "point": POINT,
        "kind": "final",
        "instant": START - dt.timedelta(seconds=1),
        "checkpoint": f"vmreplica-aaaaaaaa-{POINT}",
        "definition": "<domain/>",
        "disks": tuple(
            AdoptedDisk(target=target, path=str(path), format=form or form_of(path), size=size)
            for target, path in disks.items()
        ),
    }
    return Adoption.model_validate(usual | fields)


class NewPrimary(Primary):
    """Sends points of a later epoch than that of any adoption here."""

    def opening(self, *, whole: bool = False, epoch: int = 2, keep: int = 3, checkpoint: bool = True) -> PointOpening:
        """The opening of the next point."""
        return super().opening(whole=whole, epoch=epoch, keep=keep, checkpoint=checkpoint)


def new_primary(content: Mapping[str, Mapping[int, bytes]], *, size: int = SIZE) -> Primary:
    """The new primary, whose VM started from these disks."""
    primary = NewPrimary(dict.fromkeys(content, size), patches=True)
    for target, clusters in content.items():
        primary.disks[target] = dict(clusters)
    primary.latest = POINT
    primary.expected[POINT] = {target: primary._flat(target) for target in primary.sizes}
    return primary


def some_content(seed: int = 5, clusters: int = 20) -> dict[int, bytes]:
    """Clusters of noise in places that differ by seed."""
    source = random.Random(seed)
    return {number: noise(seed * 1000 + number) for number in source.sample(range(40), clusters)}


def adopted(store: Path, disks: Mapping[str, Path]) -> Replica:
    """The replica, which takes points."""
    repository = open_repository(store)
    replica = repository.adopt(adoption(disks))
    replica.finish_adoption()
    return replica

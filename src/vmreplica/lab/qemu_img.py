"""The few calls of qemu-img that the lab needs."""

import json
from pathlib import Path

from vmreplica.lab.commands import run


def image_format(image: Path) -> str:
    """Tell an image's format as qemu-img detects it; the image may be in use."""
    shown = json.loads(run(["qemu-img", "info", "-U", "--output=json", str(image)]).stdout)
    return str(shown["format"])


def create_qcow2(image: Path, size: int) -> None:
    """Make an empty qcow2 image of a size in bytes."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size)])


def raw_to_qcow2(raw: Path, image: Path, size: int) -> None:
    """Turn a raw file into a qcow2 image, grown to a size in bytes."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)], timeout=1800)
    run(["qemu-img", "resize", "-q", str(image), str(size)])

"""qemu-img, run with time limits: checks, overlays, and what an image says about itself."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from vmreplica.model.errors import Corrupt, HypervisorError, TimedOut

_QUICK = 30.0
_CHECK = 3600.0
_DAMAGED, _LEAKS = 2, 3


def qemu_img_check(path: Path, *, seconds: float = _CHECK) -> None:
    """Check an image's tables as QEMU sees them.

    Raises:
        Corrupt: ``image-damaged``: broken tables or leaked clusters.
        HypervisorError: ``qemu-img-failed``.
        TimedOut: ``qemu-img-timeout``.
    """
    run = _run(["check", "-U", "--output=json", "-f", "qcow2", str(path.absolute())], seconds)
    if run.returncode in {_DAMAGED, _LEAKS}:
        raise Corrupt("image-damaged", f"qemu-img check finds {path} damaged: {run.stdout.strip()}")
    _must_succeed(run, f"check {path}")


def create_overlay(path: Path, backing: Path | str, size: int) -> None:
    """Make an empty writable qcow2 overlay.

    Args:
        path: of the new file.
        backing: the qcow2 image it starts from, as it shall stand in the file: a relative name is relative to
            the new file's directory.
        size: of the disk, in bytes.

    Raises:
        HypervisorError: ``qemu-img-failed``.
        TimedOut: ``qemu-img-timeout``.
    """
    source = ["-F", "qcow2", "-b", str(backing)]
    run = _run(["create", "-q", "-f", "qcow2", *source, str(path.absolute()), str(size)], _QUICK)
    _must_succeed(run, f"create {path} over {backing}")


def image_info(path: Path) -> dict[str, Any]:
    """Tell what ``qemu-img info --output=json`` tells of one image, not of its backing files.

    Raises:
        HypervisorError: ``qemu-img-failed``.
        TimedOut: ``qemu-img-timeout``.
    """
    run = _run(["info", "-U", "--output=json", "-f", "qcow2", str(path.absolute())], _QUICK)
    _must_succeed(run, f"info {path}")
    info: dict[str, Any] = json.loads(run.stdout)
    return info


def chain_info(path: Path, form: str) -> list[dict[str, Any]]:
    """Tell what qemu-img tells of an image and of all its backing files, the image first.

    Args:
        path: of the image; its owner may have it open.
        form: its format: ``qcow2``, ``raw``...

    Raises:
        HypervisorError: ``qemu-img-failed``: one of them is missing or damaged.
        TimedOut: ``qemu-img-timeout``.
    """
    run = _run(["info", "-U", "--backing-chain", "--output=json", "-f", form, str(path.absolute())], _QUICK)
    _must_succeed(run, f"info {path}")
    chain: list[dict[str, Any]] = json.loads(run.stdout)
    return chain


def data_above(path: Path, depth: int, *, seconds: float = 300.0) -> int:
    """Tell how many bytes of a disk are data in the topmost images of a chain.

    Args:
        path: of the top image; its owner may have it open.
        depth: how many images count as topmost, this one included.
        seconds: limit.

    Raises:
        HypervisorError: ``qemu-img-failed``.
        TimedOut: ``qemu-img-timeout``.
    """
    found = 0
    command = ["qemu-img", "map", "-U", "--output=json", "-f", "qcow2", str(path.absolute())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        watch = threading.Timer(seconds, run.kill)
        watch.start()
        try:
            # One extent per line, and a badly fragmented disk has millions: never all at once.
            for line in run.stdout or ():
                found += _data_of(line, depth)
        finally:
            watch.cancel()
        said = run.stderr.read() if run.stderr else ""
    if run.returncode < 0:
        raise TimedOut("qemu-img-timeout", f"qemu-img map took longer than {seconds:.0f} s")
    if run.returncode != 0:
        raise HypervisorError("qemu-img-failed", f"qemu-img map {path} failed: {said.strip()}")
    return found


def _data_of(line: str, depth: int) -> int:
    """Read one line of ``qemu-img map``; the last one of a process that was killed may be broken off."""
    try:
        extent = json.loads(line.strip().lstrip("[").rstrip(",]") or "{}")
        return int(extent["length"]) if extent.get("data") and extent["depth"] < depth else 0
    except ValueError:
        return 0


def _run(arguments: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimedOut("qemu-img-timeout", f"qemu-img {arguments[0]} took longer than {seconds:.0f} s") from error
    except FileNotFoundError as error:
        raise HypervisorError(
            "qemu-img-failed", "qemu-img is not installed", hint="apt install qemu-utils", kind="operator"
        ) from error


def _must_succeed(run: subprocess.CompletedProcess[str], what: str) -> None:
    if run.returncode != 0:
        raise HypervisorError("qemu-img-failed", f"qemu-img {what} failed: {run.stderr.strip()}")

"""Writing a disk, read through its whole chain, into a file of another format, and comparing the two: qemu-img."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from vmreplica.model.errors import Corrupt, HypervisorError

#: Told how far it is, 0 to 1.
Progress = Callable[[float], None]

_SHARE: Final = re.compile(rb"\(\s*(\d{1,3}(?:\.\d{1,2})?)/100%\)")
_DIFFERENT: Final = 1
#: Seconds between two looks whether it shall stop.
_LOOK: Final = 0.2
#: Lines of what it says that are kept.
_TOLD: Final = 5


class ConvertStopped(Exception):
    """It was asked to stop; what was written so far is of no use."""


def convert_image(image: Path, out: Path, form: str, *, progress: Progress, stop: threading.Event) -> None:
    """Write a disk into a new file.

    Args:
        image: of a point that is held: the top of its chain.
        out: the file; written anew.
        form: ``qcow2``, ``raw``, ``vhdx``, ``vmdk``.
        progress: told how far it is.
        stop: set to stop it.

    Raises:
        ConvertStopped: it was stopped.
        HypervisorError: ``qemu-img-failed``: an image cannot be read, or the file not be written.
    """
    arguments = ["convert", "-p", "-U", "-f", "qcow2", "-O", form, str(image.absolute()), str(out.absolute())]
    code, said = _run(arguments, progress, stop)
    if code != 0:
        raise HypervisorError("qemu-img-failed", f"qemu-img convert {image} failed: {said}")


def compare_images(image: Path, other: Path, form: str, *, progress: Progress, stop: threading.Event) -> None:
    """See that a file reads the same as a disk; what one has beyond the other's end must be zeroes.

    Args:
        image: the top of the disk's chain.
        other: the file.
        form: the file's format.
        progress: told how far it is.
        stop: set to stop it.

    Raises:
        ConvertStopped: it was stopped.
        Corrupt: ``export-differs``.
        HypervisorError: ``qemu-img-failed``: one of them cannot be read.
    """
    arguments = ["compare", "-p", "-U", "-f", "qcow2", "-F", form, str(image.absolute()), str(other.absolute())]
    code, said = _run(arguments, progress, stop)
    if code == _DIFFERENT:
        hint = "the file system that it was written to, or this host's memory, is not to be trusted: write it elsewhere"
        raise Corrupt("export-differs", f"{other} does not read like {image}: {said}", hint=hint)
    if code != 0:
        raise HypervisorError("qemu-img-failed", f"qemu-img compare {image} failed: {said}")


def _run(arguments: list[str], progress: Progress, stop: threading.Event) -> tuple[int, str]:
    """Give the exit code and the end of what was said."""
    if shutil.which("qemu-img") is None:
        hint = "apt install qemu-utils"
        raise HypervisorError("qemu-img-failed", "qemu-img is not installed", hint=hint, kind="operator")
    command = ["qemu-img", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        said: list[bytes] = []
        reader = threading.Thread(target=_follow, args=(run.stdout, progress, said), daemon=True)
        reader.start()
        try:
            while run.poll() is None:
                if stop.wait(_LOOK):
                    raise ConvertStopped
        finally:
            if run.poll() is None:
                run.kill()
            run.wait()
            reader.join()
    return run.returncode, b"".join(said).decode(errors="replace").strip()


def _follow(output: IO[bytes] | None, progress: Progress, said: list[bytes]) -> None:
    """Tell shares of a hundred, and gather the last words besides."""
    left = b""
    while output is not None and (piece := os.read(output.fileno(), 4096)):
        *shares, left = (left + piece).split(b"\r")
        for part in shares:
            if match := _SHARE.search(part):
                progress(float(match[1]) / 100)
            elif part.strip():
                said[:] = [*said, part][-_TOLD:]
        left = left[-4096:]
    if not _SHARE.search(left):
        said.append(left)

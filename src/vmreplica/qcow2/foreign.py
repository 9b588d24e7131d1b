"""Images that others made and nobody vouches for: what they are, and that they lead to no other file.

A format is never guessed from content, which a guest can write: it is said, or told by the file's name. A header is
read by us before QEMU sees it, since QEMU opens what a header refers to: backing files, data files, extents, even over
the network.
"""

import json
import os
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from vmreplica.model.errors import BadRequest, Conflict, Corrupt, HypervisorError, Refused, TimedOut, VmReplicaError
from vmreplica.model.seed import SeedFormat

_ENDINGS: Final[dict[str, SeedFormat]] = {
    ".qcow2": "qcow2", ".vhdx": "vhdx", ".vmdk": "vmdk", ".vdi": "vdi", ".vhd": "vhd", ".vpc": "vhd", ".raw": "raw",
    ".img": "raw",
}  # fmt: skip
#: Where each format has its magic bytes.
_MAGIC: Final[dict[SeedFormat, tuple[int, bytes]]] = {
    "qcow2": (0, b"QFI\xfb"),
    "vhdx": (0, b"vhdxfile"),
    "vmdk": (0, b"KDMV"),
    "vdi": (0x40, b"\x7f\x10\xda\xbe"),
    "vhd": (0, b"conectix"),
}
#: A VHD of fixed size has its header only at its end.
_VHD_FOOTER: Final = 512
#: Magic, version, place and length of the backing file's name, cluster bits, size, encryption.
_QCOW2: Final = struct.Struct(">4sIQIIQI")
_QCOW2_FEATURES: Final = (72, struct.Struct(">Q"))
_DATA_FILE_BIT: Final = 1 << 2
#: Magic, version, flags, sectors, grain size, sector of the descriptor, its sectors.
_VMDK: Final = struct.Struct("<4sIIQQQQ")
_VMDK_KINDS: Final = frozenset({"monolithicsparse", "streamoptimized"})
_MAX_DESCRIPTOR: Final = 128
_SECTOR: Final = 512
_HEAD: Final = 4096
#: Tools read strangers' metadata with so much address space and processor time at most.
_MEMORY: Final = 2 << 30
_INFO_SECONDS: Final = 10
_CHECK_SECONDS: Final = 3600
_GLANCE: Final = 0.1
#: Exit codes of qemu-img check: no errors; leaked clusters, which do no harm.
_USABLE: Final = frozenset({0, 3})
_MESSAGE: Final = 500
#: Formats whose tables qemu-img can check.
_CHECKED: Final = frozenset({"qcow2", "vhdx", "vmdk", "vdi"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignImage:
    """An open image; the descriptor is its owner's to close.

    Attributes:
        fd: what is read, whatever becomes of the name.
        name: the path as its owner wrote it, for errors.
        format: said or told by the name, and found to be true.
        device: it is a block device.
    """

    fd: int
    name: str
    format: SeedFormat
    device: bool

    def node(self, size: int | None = None) -> str:
        """Describe it to QEMU: every driver named, no backing file opened.

        Args:
            size: bytes of the disk to show, a multiple of 512 and at most what there is; None: all.
        """
        path = f"/proc/self/fd/{self.fd}"
        file = {"driver": "host_device" if self.device else "file", "filename": path}
        node: dict[str, Any] = {"driver": "vpc" if self.format == "vhd" else self.format, "file": file}
        if self.format in {"qcow2", "vmdk"}:
            node["backing"] = None
        if size is not None:
            node = {"driver": "raw", "size": size, "file": node}
        return "json:" + json.dumps(node)


def format_of(name: str, said: SeedFormat | None, *, device: bool) -> SeedFormat:
    """Tell an image's format without looking into it.

    Raises:
        BadRequest: ``seed-format-unknown``.
    """
    known = said or ("raw" if device else _ENDINGS.get(PurePosixPath(name).suffix.lower()))
    if known is None:
        raise BadRequest(
            "seed-format-unknown",
            f"the ending of {name} does not tell its format, and content is not trusted to",
            hint=f"say it: --seed existing:raw:{name}, or qcow2, vhdx, vmdk, vdi, vhd",
        )
    return known


def check_header(image: ForeignImage, *, said: bool) -> None:
    """Check that an image is what it is called, stands alone and is readable for us.

    Args:
        image: any content.
        said: the format was said by a person, not told by the name: raw may then look like anything.

    Raises:
        Refused: ``seed-not-alone``, ``seed-encrypted``, ``seed-format-differs``.
        Corrupt: ``seed-not-an-image``.
    """
    head = os.pread(image.fd, _HEAD, 0)
    looks = _looks_like(image, head)
    if image.format == "raw":
        if looks is not None and not said:
            raise Refused(
                "seed-format-differs",
                f"{image.name} is named like a raw image but begins like a {looks} image",
                hint=f"say which it is: --seed existing:{looks}:{image.name} or existing:raw:{image.name}",
            )
    elif looks != image.format:
        raise Corrupt(
            "seed-not-an-image",
            f"{image.name} is no {image.format} image: it does not begin as one",
            hint="`qemu-img info` shows what it is; a descriptor file of a VMDK is not the disk: name the other file",
        )
    elif image.format == "qcow2":
        _check_qcow2(image, head)
    elif image.format == "vmdk":
        _check_vmdk(image, head)


def virtual_size(image: ForeignImage) -> int:
    """Tell the size of an image's disk in bytes.

    Raises:
        Corrupt: ``seed-not-an-image``: QEMU cannot open it.
        Refused: ``seed-encrypted``, ``seed-not-alone``.
        Conflict: ``seed-in-use``.
        TimedOut, HypervisorError: ``seed-tool-failed``.
    """
    run = _run(image, ["info", "--output=json"], _INFO_SECONDS)
    if run.returncode != 0:
        raise _unopened(image, run.stderr)
    info: dict[str, Any] = json.loads(run.stdout)
    if info.get("encrypted"):
        raise _encrypted(image)
    if "backing-filename" in info or "data-file" in info.get("format-specific", {}).get("data", {}):
        raise _not_alone(image, "another file")
    return int(info["virtual-size"])


def check_tables(image: ForeignImage, stopped: Callable[[], bool]) -> None:
    """Check the tables of an image; of formats that cannot be checked, nothing. May take minutes.

    Args:
        image: whose header was checked.
        stopped: tells whether to give up.

    Raises:
        Corrupt: ``seed-damaged``.
        Conflict: ``cancelled``.
        TimedOut, HypervisorError: ``seed-tool-failed``.
    """
    if image.format not in _CHECKED:
        return
    run = _run(image, ["check", "--output=json"], _CHECK_SECONDS, stopped)
    if run.returncode not in _USABLE:
        # 2: corruptions. 1: the check gave up, as with a VMDK whose grains lie behind its end.
        text = run.stderr.replace(f"/proc/self/fd/{image.fd}", image.name).strip()
        raise Corrupt(
            "seed-damaged",
            f"qemu-img check finds {image.name} damaged (cut short, perhaps): {text[-_MESSAGE:] or 'corruptions'}",
            hint=f"`qemu-img check {image.name}` tells more; restore it again, or seed with --seed network",
        )


def _looks_like(image: ForeignImage, head: bytes) -> SeedFormat | None:
    for kind, (place, magic) in _MAGIC.items():
        if head[place : place + len(magic)] == magic:
            return kind
    end = os.lseek(image.fd, 0, os.SEEK_END)
    magic = _MAGIC["vhd"][1]
    if end >= _VHD_FOOTER and os.pread(image.fd, len(magic), end - _VHD_FOOTER) == magic:
        return "vhd"
    return None


def _check_qcow2(image: ForeignImage, head: bytes) -> None:
    place, features = _QCOW2_FEATURES
    if len(head) < place + features.size:
        raise _unopened(image, "it is shorter than its header")
    _, version, backing, backing_size, _, _, encryption = _QCOW2.unpack_from(head)
    if encryption:
        raise _encrypted(image)
    if backing or backing_size:
        raise _not_alone(image, "a backing file")
    if version > 2 and features.unpack_from(head, place)[0] & _DATA_FILE_BIT:  # noqa: PLR2004 - version 2 has none
        raise _not_alone(image, "a data file")


def _check_vmdk(image: ForeignImage, head: bytes) -> None:
    if len(head) < _VMDK.size:
        raise _unopened(image, "it is shorter than its header")
    _, _, _, sectors, _, place, length = _VMDK.unpack_from(head)
    if not sectors:
        raise _not_alone(image, "other files")
    if not 0 < length <= _MAX_DESCRIPTOR:
        raise _unopened(image, "it has no descriptor of a usual size")
    text = os.pread(image.fd, length * _SECTOR, min(place, 1 << 40) * _SECTOR).decode("latin-1")
    words = dict(line.lower().split("=", 1) for line in text.replace("\0", "\n").splitlines() if "=" in line)
    said = {key.strip(): value.strip().strip('"') for key, value in words.items()}
    if said.get("createtype") not in _VMDK_KINDS:
        raise _not_alone(image, "other files")
    if said.get("parentcid", "ffffffff") != "ffffffff" or "parentfilenamehint" in said:
        raise _not_alone(image, "a parent")


def _run(
    image: ForeignImage, arguments: list[str], seconds: float, stopped: Callable[[], bool] = lambda: False
) -> subprocess.CompletedProcess[str]:
    limits = ["prlimit", f"--as={_MEMORY}", f"--cpu={seconds:.0f}", "--core=0", "setpriv", "--pdeathsig", "KILL"]
    command = [*limits, "qemu-img", *arguments, image.node()]
    try:
        with subprocess.Popen(
            command, pass_fds=(image.fd,), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as tool:
            try:
                return _finished(image, tool, arguments[0], time.monotonic() + seconds, stopped)
            finally:
                tool.kill()
    except FileNotFoundError as error:
        raise HypervisorError(
            "seed-tool-failed",
            f"{error.filename} is not installed on the replica",
            hint="apt install qemu-utils util-linux",
            kind="operator",
        ) from error


def _finished(
    image: ForeignImage, tool: subprocess.Popen[str], verb: str, deadline: float, stopped: Callable[[], bool]
) -> subprocess.CompletedProcess[str]:
    while True:
        try:
            said, complained = tool.communicate(timeout=_GLANCE)
        except subprocess.TimeoutExpired:
            if stopped():
                raise Conflict("cancelled", f"checking {image.name} was cancelled", kind="transient") from None
            if time.monotonic() > deadline:
                text = f"qemu-img {verb} of {image.name} took too long and was ended"
                hint = "look at the load and the disks of the replica's host"
                raise TimedOut("seed-tool-failed", text, hint=hint) from None
        else:
            return subprocess.CompletedProcess(tool.args, tool.returncode, said, complained)


def _unopened(image: ForeignImage, said: str) -> VmReplicaError:
    text = said.replace(f"/proc/self/fd/{image.fd}", image.name).strip()
    if 'get "write" lock' in text or 'shared "write"' in text:
        return Conflict(
            "seed-in-use",
            f"{image.name} is in use by a program that writes it, a running VM perhaps",
            hint="name a copy that nobody writes",
        )
    return Corrupt(
        "seed-not-an-image",
        f"{image.name} cannot be opened as a {image.format} image: {text[-_MESSAGE:]}",
        hint=f"`qemu-img info {image.name}` tells more; restore it again, or seed with --seed network",
    )


def _encrypted(image: ForeignImage) -> Refused:
    return Refused(
        "seed-encrypted",
        f"{image.name} is encrypted: its content cannot be compared",
        hint="restore it decrypted, or seed with --seed network",
    )


def _not_alone(image: ForeignImage, other: str) -> Refused:
    return Refused(
        "seed-not-alone",
        f"{image.name} refers to {other}: only an image that stands alone is read",
        hint=f"make it one: qemu-img convert -O qcow2 {image.name} WHOLE.qcow2; "
        "of a flat VMDK name the -flat file as raw",
    )

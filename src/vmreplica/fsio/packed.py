"""Small files of a machine, packed for the way and unpacked within bounds: what a peer packed is not trusted."""

import base64
import binascii
import hashlib
from typing import Final

import zstandard

from vmreplica.model.errors import Corrupt
from vmreplica.model.machine import MAX_PACKED, MachineEntry, MachineFile
from vmreplica.model.units import MiB

_LEVEL: Final = 9
#: Memory that unpacking may take: a window larger than this is nothing that we packed.
_WINDOW: Final = 64 * MiB


def pack_file(name: str, content: bytes) -> MachineFile:
    """Pack a file.

    Raises:
        ValueError: packed, it is larger than all files of a machine may be.
    """
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(content)
    if len(packed) > MAX_PACKED:
        raise ValueError(f"{name} has {len(packed)} bytes when it is packed, {MAX_PACKED} are the most")
    return MachineFile(
        name=name,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        content=base64.b64encode(packed).decode(),
    )


def packed_bytes(file: MachineFile) -> bytes:
    """Give a file's content as it is packed, after looking whether it unpacks to what the file says.

    Raises:
        Corrupt: ``machine-file-damaged``.
    """
    try:
        packed = base64.b64decode(file.content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _damaged(file) from error
    unpack(file, packed)
    return packed


def unpack(file: MachineEntry, packed: bytes) -> bytes:
    """Unpack a file's content; never makes more than its size of it.

    Raises:
        Corrupt: ``machine-file-damaged``: it is not what its size and digest say.
    """
    try:
        with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(packed) as reader:
            content = reader.read(file.size + 1)
    except zstandard.ZstdError as error:
        raise _damaged(file) from error
    if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
        raise _damaged(file)
    return content


def _damaged(file: MachineEntry) -> Corrupt:
    what = "UEFI variables" if file.name == "nvram" else f"TPM state ({file.name})"
    return Corrupt(
        "machine-file-damaged",
        f"the {what} of the point are not what they should be",
        hint="use another recovery point; the next one brings them anew",
    )

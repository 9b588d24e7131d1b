"""What a machine keeps outside its disks: UEFI variables and the TPM's state. They travel in a point's opening."""

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from vmreplica.model.shape import Shape
from vmreplica.model.units import MiB

NVRAM: Final = "nvram"
#: Bytes of one file, unpacked.
MAX_MACHINE_FILE: Final = 64 * MiB
#: Bytes of all files of a machine, packed: a TPM has some ten KiB, UEFI variables shrink to as little.
MAX_PACKED: Final = 2 * MiB
MAX_ENCODED: Final = (MAX_PACKED + 2) // 3 * 4
MAX_MACHINE_FILES: Final = 16
MAX_REMARK: Final = 300

#: ``nvram``, or a file of the TPM below the directory of its version. Anything else a peer may say is refused.
MachineFileName = Annotated[str, StringConstraints(pattern=r"^(nvram|tpm(1\.2|2)/[A-Za-z0-9][A-Za-z0-9._-]{0,63})$")]
#: Why something of the machine is not in a point, a sentence for a person.
Remark = Annotated[str, StringConstraints(max_length=MAX_REMARK)]
_Size = Annotated[int, Field(ge=0, le=MAX_MACHINE_FILE)]


class MachineEntry(Shape):
    """One such file as a point's manifest names it."""

    name: MachineFileName
    #: Bytes, and the SHA-256 of them, unpacked.
    size: _Size
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class MachineFile(MachineEntry):
    """One such file on its way: packed with zstd, in base64."""

    content: Annotated[str, Field(max_length=MAX_ENCODED)]

    @property
    def entry(self) -> MachineEntry:
        """What the manifest says of it."""
        return MachineEntry(name=self.name, size=self.size, sha256=self.sha256)


MachineFiles = Annotated[tuple[MachineFile, ...], Field(max_length=MAX_MACHINE_FILES)]
MachineEntries = Annotated[tuple[MachineEntry, ...], Field(max_length=MAX_MACHINE_FILES)]
Remarks = Annotated[tuple[Remark, ...], Field(max_length=8)]


def require_acceptable(files: tuple[MachineFile, ...]) -> None:
    """See that no file is named twice and all together are small.

    Raises:
        ValueError: they are not.
    """
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file of the machine is named twice")
    if sum(len(file.content) for file in files) > MAX_ENCODED:
        raise ValueError("the files of the machine are too large")

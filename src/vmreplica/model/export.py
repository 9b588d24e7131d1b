"""An initial replication that travels in a directory: where it is written, and what its replica waits for."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from vmreplica.model.ids import HostId, PointId, VmId, VmName
from vmreplica.model.point import PointClosing, PointOpening
from vmreplica.model.shape import Shape

#: Names one export for ever: the same directory may be used again later.
ExportId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
#: An absolute path of the host that reads or writes it.
Directory = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f]*$", max_length=4096)]
#: The public key (age, X25519) that an export is encrypted for.
Recipient = Annotated[str, StringConstraints(pattern=r"^age1[0-9a-z]{20,100}$")]
Passphrase = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Protection = Literal["none", "passphrase", "recipient"]


class SeedExport(Shape):
    """Part of a VM's policy: its first copy goes to a directory. Nothing in it is secret."""

    export: ExportId
    directory: Directory
    #: None: it is not encrypted.
    recipient: Recipient | None = None


class ExportHeader(Shape):
    """``vmreplica-export.json``: tells, without any key, what an export is and whom it is for."""

    format: Literal["vmreplica-export-1"] = "vmreplica-export-1"
    export: ExportId
    vm: VmId
    name: VmName
    primary: HostId
    replica: HostId
    protection: Protection
    created: AwareDatetime


class AwaitedBase(Shape):
    """Told to the replica when an export is complete: from now on deltas are sent that stand on it."""

    export: ExportId
    opening: PointOpening
    closing: PointClosing
    #: Of the export's checksum list, and so of every file of the export.
    checksums: Sha256

    @model_validator(mode="after")
    def _coherent(self) -> "AwaitedBase":
        if self.opening.parent is not None:
            raise ValueError("an exported point stands alone")
        if [disk.target for disk in self.opening.disks] != [disk.target for disk in self.closing.disks]:
            raise ValueError("opening and closing are of different disks")
        return self


class ImportReport(Shape):
    """What an import came to."""

    vm: VmId
    name: VmName
    #: The oldest point of the replica: it holds the first copy.
    point: PointId
    #: It was taken in before; nothing was read.
    was_here: bool
    #: Bytes of the files that were read.
    file_bytes: Annotated[int, Field(ge=0)] = 0


class ExportSeed(Shape):
    """Asked for: the first copy goes to a directory of the primary, and a person carries it to the replica."""

    kind: Literal["export"] = "export"
    directory: Directory
    #: Encrypts it; never kept.
    passphrase: Passphrase | None = Field(default=None, repr=False)
    #: Or this public key does.
    recipient: Recipient | None = None

    @model_validator(mode="after")
    def _one_key(self) -> "ExportSeed":
        if self.passphrase is not None and self.recipient is not None:
            raise ValueError("either a passphrase or a recipient, not both")
        return self

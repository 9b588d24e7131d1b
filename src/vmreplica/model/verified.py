"""Proof of a point: what its primary said its disks hold, and what comparing them came to."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.shape import Shape

#: equal: what the replica holds is what the VM's disk held. wrong: it is not. unproven: nobody can tell. repaired: what
#: was found wrong at an older point was brought again, and is right at this one; the rest was right before.
Verdict = Literal["equal", "wrong", "unproven", "repaired"]
#: Ranges of a disk that are named one by one; there may be more.
MAX_RANGES = 1000

_Bytes = Annotated[int, Field(ge=0)]


class Proof(Shape):
    """The fingerprint's sum of a disk at a point, made by the primary from what it read of the VM's disk."""

    #: Of the hashes.
    key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    sum: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    #: False: some of it is what the replica itself had told, and was not compared with the VM's disk since.
    own: bool


class WrongRange(Shape):
    """Guest bytes of a disk that the replica does not hold as the VM had them."""

    offset: _Bytes
    length: _Bytes


class DiskVerdict(Shape):
    """One disk of a verified point."""

    target: DiskTarget
    verdict: Verdict
    #: blocks: each block was compared with the primary's fingerprint. sum: the sum of all of them with the one that was
    #: made when the point was taken. none: neither was possible.
    how: Literal["blocks", "sum", "none"]
    #: That the replica read: guest bytes that are not zero.
    read_bytes: _Bytes = 0
    wrong_bytes: _Bytes = 0
    #: The first of them, ascending; empty when only the disk as a whole could be compared.
    wrong: Annotated[tuple[WrongRange, ...], Field(max_length=MAX_RANGES)] = ()
    #: Why it is unproven, or known no closer.
    why: Annotated[str, Field(max_length=1000)] = ""


class Verified(Shape):
    """What verifying a point came to; kept with the point."""

    point: PointId
    when: AwareDatetime
    verdict: Verdict
    disks: Annotated[tuple[DiskVerdict, ...], Field(max_length=64)] = ()


class VerifyReport(Shape):
    """What verifying a VM's point came to, and repairing it if that was asked for."""

    vm: VmId
    name: str
    instant: AwareDatetime
    verified: Verified
    seconds: float
    #: The point that what was wrong was brought again with, and whether it is right there; None: not done.
    repaired: Verified | None = None
    #: Bytes that crossed the network for that.
    repair_wire_bytes: _Bytes = 0

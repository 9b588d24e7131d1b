"""Every error a person or a script can meet, as one tree with stable codes.

::

    VmReplicaError
    +-- BadRequest          the caller asked for something that cannot be (exit 2, HTTP 400)
    +-- NotFound            an unknown VM, peer, point (exit 3, HTTP 404)
    +-- Refused             not allowed for this peer or in this state (exit 4, HTTP 403)
    +-- Conflict            true a moment ago, not now: state, epoch, duplicate (exit 5, HTTP 409)
    +-- Corrupt             bytes are not what their digest or format promises (exit 6, HTTP 422)
    +-- NoSpace             a file system or cap is full; goes on by itself when there is room (exit 7, HTTP 507)
    +-- Unreachable         the other host or the local agent does not answer (exit 8, HTTP 502)
    +-- HypervisorError     libvirt or QEMU refused or failed (exit 9, HTTP 500)
    |   +-- CheckpointBroken    changes since a checkpoint cannot be asked of some disks
    +-- TimedOut            a call took longer than its limit (exit 10, HTTP 504)
    +-- Internal            a defect of ours (exit 1, HTTP 500)

Each error has a stable ``code`` (``vm-unknown``), a message naming the VM, disk, file or host, and a ``hint``: what
to do next. ``kind`` says who can help: ``transient`` (retry), ``operator`` (a person), ``permanent`` (nobody: a
different request is needed).
"""

from typing import ClassVar, Literal

from vmreplica.model.shape import Shape

Kind = Literal["transient", "operator", "permanent"]


class Problem(Shape):
    """An error as JSON, in HTTP bodies (after RFC 9457) and in ``--json`` output."""

    code: str
    kind: Kind
    status: int
    message: str
    hint: str


class VmReplicaError(Exception):
    """Base of all errors with a stable code.

    Args:
        code: stable, lower-case, dashed; documented in the error table.
        message: what happened, on which VM, disk, file or host.
        hint: what to do next, best as a command.
    """

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    kind: Kind = "permanent"

    def __init__(self, code: str, message: str, *, hint: str = "", kind: Kind | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        if kind is not None:
            self.kind = kind

    def problem(self) -> Problem:
        """Render for the wire."""
        return Problem(code=self.code, kind=self.kind, status=self.status, message=self.message, hint=self.hint)


class BadRequest(VmReplicaError):
    """The request itself is wrong."""

    exit_code, status = 2, 400


class NotFound(VmReplicaError):
    """Something named does not exist."""

    exit_code, status = 3, 404


class Refused(VmReplicaError):
    """The caller may not do this, or not with this VM."""

    exit_code, status = 4, 403
    kind: Kind = "operator"


class Conflict(VmReplicaError):
    """The present state, epoch or another running act forbids it."""

    exit_code, status = 5, 409
    kind: Kind = "operator"


class Corrupt(VmReplicaError):
    """Bytes do not match their digest, or break the format."""

    exit_code, status = 6, 422


class NoSpace(VmReplicaError):
    """Not enough room; work pauses and goes on by itself when there is room."""

    exit_code, status = 7, 507
    kind: Kind = "transient"


class Unreachable(VmReplicaError):
    """The other side does not answer."""

    exit_code, status = 8, 502
    kind: Kind = "transient"


class HypervisorError(VmReplicaError):
    """libvirt or QEMU refused or failed."""

    exit_code, status = 9, 500
    kind: Kind = "transient"


class CheckpointBroken(HypervisorError):
    """Changes since a checkpoint cannot be asked of some disks any more.

    Args:
        code: as for every error.
        message: likewise.
        hint: likewise.
        disks: their targets; empty when nobody could tell which, so all must be doubted.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", disks: frozenset[str] = frozenset()) -> None:
        super().__init__(code, message, hint=hint)
        self.disks = disks


class TimedOut(VmReplicaError):
    """A call took longer than its limit."""

    exit_code, status = 10, 504
    kind: Kind = "transient"


class Internal(VmReplicaError):
    """A defect of ours."""

    exit_code, status = 1, 500


_FAMILIES: tuple[type[VmReplicaError], ...] = (
    BadRequest, NotFound, Refused, Conflict, Corrupt, NoSpace, Unreachable, HypervisorError, TimedOut, Internal,
)  # fmt: skip


def from_problem(problem: Problem) -> VmReplicaError:
    """Rebuild an error that arrived as JSON; a status nobody knows becomes Internal."""
    by_status = {family.status: family for family in reversed(_FAMILIES)}
    by_status[500] = HypervisorError if problem.kind == "transient" else Internal
    family = by_status.get(problem.status, Internal)
    return family(problem.code, problem.message, hint=problem.hint, kind=problem.kind)

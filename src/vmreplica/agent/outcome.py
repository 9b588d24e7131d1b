"""What a run of a cycle came to."""

from dataclasses import dataclass

from vmreplica.agent.decide import Capture
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.point import PointSummary
from vmreplica.model.quiesce import Quiescence


@dataclass(frozen=True, slots=True)
class Earlier:
    """A point of an earlier run that did not get to tell of it: killed, or not answered by the replica.

    This run sent the rest of it, or only found that the replica has it.
    """

    point: PointSummary
    #: Bytes of it that this run sent.
    sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A published point, the reason why it waits, or the error that ended it."""

    published: PointSummary | None
    step: Capture | None
    guest_bytes: int
    waits: str | None
    error: VmReplicaError | None
    #: How the guest was quiesced, if that was tried.
    quiescence: Quiescence | None = None
    #: Points of earlier runs that were published since; their bytes are not in ``guest_bytes``.
    earlier: tuple[Earlier, ...] = ()

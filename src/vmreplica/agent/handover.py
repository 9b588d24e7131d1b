"""When a replica may be handed over to another primary, and the words for when it may not. Pure."""

from vmreplica.model.errors import Conflict
from vmreplica.model.ids import HostName
from vmreplica.model.states import RECEIVING, State
from vmreplica.repository.record import ReplicaRecord


def require_no_failover(record: ReplicaRecord) -> None:
    """Refuse while the copy itself is, or is becoming, the VM.

    Raises:
        Conflict: ``replica-not-receiving``.
    """
    if record.state in RECEIVING | {State.PAUSED}:
        return
    raise Conflict(
        "replica-not-receiving",
        f"the replica of {record.name} is {record.state}: it takes points from no host",
        hint=f"vmreplica status {record.name}",
    )


def runs_there(record: ReplicaRecord, primary: HostName | None) -> Conflict:
    """Say that the VM did not move."""
    where = primary or "the host that sends its points"
    return Conflict(
        "vm-runs-there",
        f"{record.name} runs on {where}: its points come from there",
        hint=f"migrate it first; virsh list on {where} shows where it is",
    )

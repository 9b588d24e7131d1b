"""Whether a protected VM may start on its primary, from what its replica says. Pure.

The primary may start it only when its replica says that the VM is not, and is not about to be, started there. An answer
that does not come is a no: a replica that is cut off may have been failed over.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from vmreplica.model.errors import NotFound, Refused, VmReplicaError
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.states import RECEIVING, State
from vmreplica.peer.wire import RunsHere

#: What a replica says, or, as long as roles are not swapped, a VM's old primary; or why nothing was said.
Answer: TypeAlias = Position | RunsHere | VmReplicaError

#: The replica has no part in the VM's life, and would have to change its state before it could.
_QUIET: Final = RECEIVING | {State.PAUSED, State.REMOVING}
_SURE: Final = "if you know that it runs nowhere else: vmreplica start {name} --i-am-sure"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes, or no with a sentence that ends with what a person can do."""

    allowed: bool
    reason: str = ""
    #: Proven: the VM's life goes on at its replica.
    stale: bool = False
    #: The replica said so, whatever it was.
    answered: bool = True


YES: Final = Verdict(allowed=True)


#: The VM's life is there, or is being brought there: nobody else may have it.
_THERE: Final = frozenset({State.FAILING_OVER, State.FAILED_OVER, State.COMMITTING, State.COMMITTED})


def is_stale(position: Position, epoch: int) -> bool:
    """Tell whether the VM's life goes on, or is about to, at the replica.

    Args:
        position: what the replica says.
        epoch: of the primary's policy. A replica that is being made of an old primary has the same one.
    """
    if position.state in _THERE:
        return True
    return position.epoch > epoch and position.state not in _QUIET | {State.CANCELLING}


def lives_there(position: Position, policy: Policy) -> bool:
    """Tell the same by a VM's policy.

    While its roles shall be swapped, the old primary may tell of a failover to it in an earlier life of the VM: then
    its epoch is not above ours. One that begins just now has not raised it yet.
    """
    past = policy.reverse is not None and position.epoch <= policy.epoch and position.state != State.FAILING_OVER
    return not past and is_stale(position, policy.epoch)


def waits_for_swap(answer: Answer, policy: Policy) -> bool:
    """Tell whether a VM's old primary cannot have become its replica, or has and leaves the VM alone.

    One that was never asked has not. One that was asked has agreed, as far as is known: only itself can tell.
    """
    if policy.reverse is None:
        return False
    if isinstance(answer, Position):
        return not lives_there(answer, policy)
    if isinstance(answer, RunsHere):
        return answer.epoch < policy.epoch
    return not policy.reverse.asked


def judge(name: str, peer: str, epoch: int, answer: Answer) -> Verdict:
    """Decide by the replica's answer.

    Args:
        name: the VM.
        peer: what its replica's host is called.
        epoch: of the VM's policy.
        answer: the replica's position, or why there is none.
    """
    if isinstance(answer, VmReplicaError):
        return _unanswered(name, peer, answer)
    if isinstance(answer, RunsHere):
        return Verdict(allowed=False, reason=f"{peer} protects {name} too, and to this host: {_SURE.format(name=name)}")
    if is_stale(answer, epoch):
        return Verdict(allowed=False, reason=elsewhere(name, peer, answer.state), stale=True)
    if answer.state in _QUIET:
        return YES
    what = "its failover there is being taken back" if answer.state == State.CANCELLING else f"it is {answer.state}"
    return Verdict(allowed=False, reason=f"{peer}, its replica, is busy with {name}: {what}; try again in a moment")


def elsewhere(name: str, peer: str, state: str) -> str:
    """Say that a VM lives on its replica, and what to do."""
    return (
        f"{name} was failed over to {peer} (its state there: {state}), and this host's copy is stale. "
        f"On {peer}, `vmreplica failover {name} --cancel` gives up what it did there, "
        f"`vmreplica reverse {name}` makes this host its replica"
    )


def _unanswered(name: str, peer: str, error: VmReplicaError) -> Verdict:
    sure = _SURE.format(name=name)
    if isinstance(error, NotFound | Refused):
        text = f"{peer} does not answer for {name} as its replica: {error.message} ({error.code})"
        remedy = f"see there whether it runs; `vmreplica disable {name}` here makes it independent; {sure}"
        return Verdict(allowed=False, reason=f"{text}. {remedy}")
    text = f"{peer}, its replica, cannot be asked whether {name} was failed over there: {error.message}"
    return Verdict(allowed=False, reason=f"{text}. See that {peer} answers; {sure}", answered=False)

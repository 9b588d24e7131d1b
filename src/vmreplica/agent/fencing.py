"""Starts of protected VMs: the answer to libvirt's hook, and the command. The answer comes without calling libvirt."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final, Self

import structlog
from pydantic import ValidationError

from vmreplica.agent.clients import Clients
from vmreplica.agent.guard import Guard
from vmreplica.agent.hooks import forget_if_unprotected
from vmreplica.agent.may_start import YES, Answer, Verdict, judge, waits_for_swap
from vmreplica.agent.protect import not_protected
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.runner import Runner
from vmreplica.hypervisor import DomainBrief, Hypervisor
from vmreplica.model.errors import Corrupt, NotFound, Refused, TimedOut, VmReplicaError
from vmreplica.model.ids import VmId, VmName
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.start import AutostartReport, StartAnswer, StartQuestion, StartReport
from vmreplica.peer.wire import RunsHere

_log: Final = structlog.get_logger(__name__)

#: Seconds that a replica has to say whether the VM was failed over; libvirt holds the VM's lock meanwhile.
_ASK_LIMIT: Final = 4.0
#: Questions at once.
_ASKING: Final = 8
#: Seconds after which a start that was allowed shows in libvirt, or has failed.
_STARTS_WITHIN: Final = 60.0


class Fencing:
    """Thread-safe.

    Args:
        guard: what is known of failovers.
        clients: connections to replicas.
        hypervisor: this host's libvirt.
        runner: shows what was learnt.
    """

    def __init__(self, *, guard: Guard, clients: Clients, hypervisor: Hypervisor, runner: Runner) -> None:
        self._guard = guard
        self._clients = clients
        self._hypervisor = hypervisor
        self._runner = runner
        self._lock = threading.Lock()
        #: Until when (monotonic) a VM may be starting, though libvirt does not show it yet.
        self._starting: dict[VmId, float] = {}
        self._asking = ThreadPoolExecutor(max_workers=_ASKING, thread_name_prefix="ask-replica")

    def stop(self) -> None:
        """Ask no more."""
        self._asking.shutdown(wait=False, cancel_futures=True)

    def may_start(self, vm: VmId, question: StartQuestion) -> StartAnswer:
        """Answer libvirt's hook."""
        try:
            policy = Policy.model_validate_json(question.policy)
        except ValidationError:
            text = f"the vmreplica metadata of {question.name} cannot be read"
            remedy = f"`vmreplica enable {question.name} --to PEER` replaces it"
            return StartAnswer(allowed=False, reason=f"{text}; {remedy}, vmreplica start {question.name} --i-am-sure")
        with self.claim(vm) as claim:
            verdict = claim.settle(self.verdict(vm, question.name, policy))
        _log.info("a VM asks to start", vm=vm, name=question.name, allowed=verdict.allowed, reason=verdict.reason)
        if not verdict.allowed:
            self._guard.refused(vm, question.name, verdict.reason)
        return StartAnswer(allowed=verdict.allowed, reason=verdict.reason)

    def starting(self, vm: VmId) -> bool:
        """Tell whether a start was allowed, or is being asked for, that libvirt may not show yet.

        Set before the replica is asked: a failover that begins there at the same time, and asks here after it has
        written down its state, is told of it. So at most one of the two goes on.
        """
        with self._lock:
            return self._starting.get(vm, 0.0) > time.monotonic()

    def claim(self, vm: VmId) -> "Claim":
        """Give the block in which a VM may be starting here; the replica is asked inside it."""
        return Claim(self._lock, self._starting, vm)

    def shown(self, vm: VmId) -> None:
        """Take note that libvirt shows what became of a start: from now on it is the one to be asked."""
        with self._lock:
            self._starting.pop(vm, None)

    def verdict(self, vm: VmId, name: VmName, policy: Policy) -> Verdict:
        """Ask a VM's replica whether it may start here."""
        fence = self._guard.fence.find(vm)
        if fence is not None and not fence.ask:
            return Verdict(allowed=False, reason=fence.reason)
        answer = self._ask(vm, policy)
        known = fence is not None and not isinstance(answer, Position)
        if not known and waits_for_swap(answer, policy):
            return YES
        if isinstance(answer, Position):
            fenced = self._guard.saw(vm, name, policy, answer)
            show_fence(self._runner, vm, fenced=fenced, runs=None)
        verdict = judge(name, self._guard.peer_name(policy.replica), policy.epoch, answer)
        if fence is None or verdict.answered:
            return verdict
        return Verdict(allowed=False, reason=fence.reason, stale=True, answered=False)

    def start(self, vm: str, *, sure: bool, dry_run: bool) -> StartReport:
        """Start a VM here, if its replica agrees or a person is sure.

        Raises:
            Refused: ``start-refused``.
            NotFound: ``vm-unknown``.
        """
        brief = self._hypervisor.find(vm)
        if brief.active:
            return StartReport(vm=brief.vm, name=brief.name, started=False, running=True, allowed=True)
        if dry_run:
            return self._report(brief, self._of_domain(brief), started=False)
        with self.claim(brief.vm) as claim:
            verdict = claim.settle(self._of_domain(brief), sure=sure)
            if not (verdict.allowed or sure):
                self._guard.refused(brief.vm, brief.name, verdict.reason)
                raise _refused(brief.name, verdict)
            with self._guard.fence.permitted(brief.vm) if sure else contextlib.nullcontext():
                self._hypervisor.start(brief.vm)
            if sure:
                forget_if_unprotected(self._hypervisor, self._guard.fence, brief.vm)
        _log.info("started", vm=brief.vm, name=brief.name, sure=sure, replica=verdict.reason or "agrees")
        self._guard.started(brief.vm, brief.name, sure=sure and not verdict.allowed)
        return self._report(brief, verdict, started=True)

    def set_autostart(self, vm: str, *, on: bool) -> AutostartReport:
        """Say whether a protected VM is started with its host.

        Raises:
            NotFound: ``vm-unknown``, ``not-protected``.
        """
        brief = self._hypervisor.find(vm)
        policy = self._hypervisor.policy(brief.vm)
        if policy is None:
            raise not_protected(brief.name)
        self.remember_autostart(brief.vm, policy, on=on)
        return AutostartReport(vm=brief.vm, name=brief.name, on=on)

    def remember_autostart(self, vm: VmId, policy: Policy, *, on: bool) -> None:
        """Write into a VM's policy whether it is started with its host."""
        rel = self._runner.find(vm)
        if rel is None:
            self._hypervisor.set_policy(vm, policy.model_copy(update={"autostart": on}))
        else:
            self._runner.amend(rel, lambda now: now.model_copy(update={"autostart": on}))

    def _of_domain(self, brief: DomainBrief) -> Verdict:
        try:
            policy = self._hypervisor.policy(brief.vm)
        except Corrupt as error:
            return Verdict(allowed=False, reason=error.message, answered=False)
        if policy is not None:
            return self.verdict(brief.vm, brief.name, policy)
        fence = self._guard.fence.find(brief.vm)
        return YES if fence is None else Verdict(allowed=False, reason=fence.reason, stale=fence.ask)

    @staticmethod
    def _report(brief: DomainBrief, verdict: Verdict, *, started: bool) -> StartReport:
        return StartReport(
            vm=brief.vm,
            name=brief.name,
            started=started,
            running=started,
            allowed=verdict.allowed,
            lives_elsewhere=verdict.stale,
            reason=verdict.reason,
        )

    def _ask(self, vm: VmId, policy: Policy) -> Answer:
        asked = self._asking.submit(self._answer, vm, policy)
        try:
            return asked.result(timeout=_ASK_LIMIT)
        except VmReplicaError as error:
            return error
        except FutureTimeoutError:
            asked.cancel()
            return TimedOut("peer-silent", f"no answer within {_ASK_LIMIT:.0f} s")

    def _answer(self, vm: VmId, policy: Policy) -> Position | RunsHere:
        with self._clients.quick(policy.replica) as client:
            try:
                return client.position(vm)
            except (NotFound, Refused):
                if policy.reverse is None:
                    raise
                return client.runs_here(vm)


class Claim:
    """That a VM may be starting: kept after the block if it was allowed and nothing was raised."""

    def __init__(self, lock: threading.Lock, claims: dict[VmId, float], vm: VmId) -> None:
        self._lock = lock
        self._claims = claims
        self._vm = vm
        self._kept = False

    def __enter__(self) -> Self:
        with self._lock:
            now = time.monotonic()
            for vm in [vm for vm, until in self._claims.items() if until <= now]:
                del self._claims[vm]
            self._claims[self._vm] = now + _STARTS_WITHIN
        return self

    def settle(self, verdict: Verdict, *, sure: bool = False) -> Verdict:
        """Take note of the answer."""
        self._kept = verdict.allowed or sure
        return verdict

    def __exit__(self, kind: object, *_rest: object) -> None:
        if not self._kept or kind is not None:
            with self._lock:
                self._claims.pop(self._vm, None)


def show_fence(runner: Runner, vm: VmId, *, fenced: bool, runs: bool | None) -> None:
    """Show whether a VM lives on its replica, and whether it runs here as well; None: as before."""

    def change(rel: Relationship, clock: float) -> None:
        if rel.vm == vm:
            rel.fence(fenced=fenced, runs=runs, clock=clock)

    runner.each(change)


def _refused(name: VmName, verdict: Verdict) -> Refused:
    hint = f"vmreplica start {name} --i-am-sure, only if you know that it runs nowhere else"
    return Refused("start-refused", f"{name} is not started: {verdict.reason}", hint=hint)

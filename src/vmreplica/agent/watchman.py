"""Looks after the fences in the background: learns of failovers soon, starts VMs with the host in libvirt's place."""

import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from vmreplica.agent.boots import Boots
from vmreplica.agent.clients import Clients
from vmreplica.agent.fencing import Fencing, show_fence
from vmreplica.agent.guard import Guard
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.runner import Runner
from vmreplica.hypervisor import DomainBrief, Hypervisor
from vmreplica.hypervisor.autostart import Autostart
from vmreplica.model.errors import HypervisorError, NoSpace, TimedOut, Unreachable, VmReplicaError
from vmreplica.model.ids import HostId, VmId
from vmreplica.model.policy import Policy

_log: Final = structlog.get_logger(__name__)

#: Seconds between looks at everything, and while VMs wait to be started with the host.
_ROUND, _BOOT_ROUND = 30.0, 5.0
#: Seconds between two looks at least, whatever happens.
_PAUSE: Final = 2.0
#: Events that change what there is to be told of a VM.
_TELLING: Final = frozenset({"started", "resumed", "stopped", "crashed", "defined"})
#: Events after which libvirt knows what became of a start.
_SETTLING: Final = frozenset({"started", "stopped", "crashed"})


class Watchman:
    """One thread of its own.

    Args:
        fencing: asks replicas for leave to start.
        guard: what is known of failovers.
        clients: connections to replicas.
        hypervisor: this host's libvirt.
        autostart: which VMs libvirt starts with the host.
        runner: shows what was learnt.
        boots: what is left to be started since the host was.
    """

    def __init__(
        self,
        *,
        fencing: Fencing,
        guard: Guard,
        clients: Clients,
        hypervisor: Hypervisor,
        autostart: Autostart,
        runner: Runner,
        boots: Boots,
    ) -> None:
        self._fencing = fencing
        self._guard = guard
        self._clients = clients
        self._hypervisor = hypervisor
        self._autostart = autostart
        self._runner = runner
        self._boots = boots
        self._news: queue.Queue[bool] = queue.Queue(maxsize=1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchman", daemon=True)

    def start(self) -> None:
        """Begin, with a look at everything."""
        self._hypervisor.watch(self._on_event)
        self._thread.start()

    def stop(self) -> None:
        """End; a look that waits for a silent host ends by its time limit."""
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Look at everything soon."""
        with contextlib.suppress(queue.Full):
            self._news.put_nowait(True)

    # ---- inside

    def _on_event(self, vm: VmId, event: str) -> None:
        if event in _SETTLING:
            self._fencing.shown(vm)
        if event in _TELLING:
            self.wake()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            waits = False
            try:
                waits = self._round()
            except VmReplicaError as error:
                _log.warning("cannot look after the fences", why=error.message)
            except Exception:  # noqa: BLE001 - a defect in one round must not end the watch
                _log.exception("a look after the fences failed")
            with contextlib.suppress(queue.Empty):
                self._news.get(timeout=_BOOT_ROUND if waits else _ROUND)
            self._stopping.wait(_PAUSE)

    def _round(self) -> bool:
        """Do everything once; tells whether VMs still wait to be started."""
        began = time.monotonic()
        policies = self._hypervisor.policies()
        briefs = {brief.vm: brief for brief in self._hypervisor.domains()}
        marked = self._autostart.on() & policies.keys()
        waiting = self._boots.waiting()
        if waiting is None:
            waiting = marked | {vm for vm, policy in policies.items() if policy.autostart}
            self._boots.wait_for(waiting)
        for vm in marked:
            self._take_over(vm, briefs.get(vm))
        self._learn(policies, briefs)
        left = self._start_waiting(waiting, policies, briefs)
        _log.debug("looked after the fences", seconds=round(time.monotonic() - began, 3), vms=len(policies))
        return bool(left)

    # ---- what libvirt would start by itself

    def _take_over(self, vm: VmId, brief: DomainBrief | None) -> None:
        """Start a VM with the host in libvirt's place: libvirt asks nobody. The policy remembers it first."""
        policy = self._hypervisor.policy(vm)
        if policy is None or brief is None:
            return
        if not policy.autostart:
            self._fencing.remember_autostart(vm, policy, on=True)
        written = self._hypervisor.policy(vm)
        if written is not None and written.autostart:
            self._autostart.set(vm, on=False)
            _log.info("the agent starts this VM with the host from now on", vm=vm, name=brief.name)

    def _start_waiting(
        self, waiting: Iterable[VmId], policies: Mapping[VmId, Policy], briefs: Mapping[VmId, DomainBrief]
    ) -> frozenset[VmId]:
        waiting = frozenset(waiting)
        left = frozenset(vm for vm in waiting if self._still_waits(briefs.get(vm), policies.get(vm)))
        if left != waiting:
            self._boots.wait_for(left)
        return left

    def _still_waits(self, brief: DomainBrief | None, policy: Policy | None) -> bool:
        """Start a VM whose replica agrees; tells whether it has to be tried again."""
        if brief is None or policy is None or brief.active:
            return self._done(brief)
        current = self._hypervisor.policy(brief.vm)
        if current is None or not current.autostart:
            return self._done(brief)
        try:
            self._fencing.start(brief.vm, sure=False, dry_run=False)
        except (HypervisorError, NoSpace) as error:
            _log.error("a VM cannot be started with the host", vm=brief.vm, name=brief.name, why=error.message)
            return self._done(brief)
        except VmReplicaError as error:
            # It is known to live elsewhere, or its replica is silent.
            self._say_waiting(brief.vm, error.message)
            return not self._guard.fenced(brief.vm)
        return self._done(brief)

    def _done(self, brief: DomainBrief | None) -> bool:
        if brief is not None:
            self._say_waiting(brief.vm, None)
        return False

    def _say_waiting(self, vm: VmId, why: str | None) -> None:
        def say(rel: Relationship, _clock: float) -> None:
            if rel.vm == vm:
                rel.start_waits = why

        self._runner.each(say)

    # ---- what replicas know

    def _learn(self, policies: Mapping[VmId, Policy], briefs: Mapping[VmId, DomainBrief]) -> None:
        by_host: dict[HostId, list[tuple[DomainBrief, Policy]]] = defaultdict(list)
        for vm, policy in policies.items():
            if vm in briefs:
                self._lift_leftover(briefs[vm])
                by_host[policy.replica].append((briefs[vm], policy))
        for host, theirs in by_host.items():
            self._ask(host, theirs)
        for vm in policies.keys() & briefs.keys():
            show_fence(self._runner, vm, fenced=self._guard.fenced(vm), runs=briefs[vm].active)

    def _lift_leftover(self, brief: DomainBrief) -> None:
        """Lift the fence of a planned failover that was given up when its agent was killed before it could do so."""
        if not self._guard.left_by_planned(brief.vm):
            return
        # Read only now: a plan is written down before its fence.
        policy = self._hypervisor.policy(brief.vm)
        if policy is not None and policy.planned is None:
            self._guard.forget_planned(brief.vm, brief.name)

    def _ask(self, host: HostId, vms: Iterable[tuple[DomainBrief, Policy]]) -> None:
        """Ask a replica for each VM, until it turns out to be silent."""
        try:
            with self._clients.quick(host) as client:
                for brief, policy in vms:
                    if self._stopping.is_set():
                        return
                    try:
                        self._guard.saw(brief.vm, brief.name, policy, client.position(brief.vm))
                    except (Unreachable, TimedOut):
                        raise
                    except VmReplicaError as error:
                        _log.debug("a replica does not answer for a VM", vm=brief.vm, why=error.message)
        except VmReplicaError as error:
            _log.debug("a replica cannot be asked about its VMs", host=host, why=error.message)

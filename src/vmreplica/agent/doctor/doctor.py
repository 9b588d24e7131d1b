"""The doctor of an agent: puts looks together into a report."""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

from vmreplica import __version__
from vmreplica.agent.doctor.host_exam import Parts, host_probes
from vmreplica.agent.doctor.probing import failed, run_probes
from vmreplica.agent.doctor.system import HOST_LIMIT, look_at_libvirt, system_probes
from vmreplica.agent.doctor.vm_exam import VM_LIMIT, VmExam, replica_findings
from vmreplica.hypervisor.examine import DomainLook, HostLook
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.findings import Finding, arranged, worst
from vmreplica.model.ids import HostName
from vmreplica.model.report import DoctorReport
from vmreplica.repository import Replica

#: Examinations at once: each has a thread for every look.
_AT_ONCE: Final = 2


class Doctor:
    """Thread-safe; changes nothing but for the trial, which leaves nothing.

    Args:
        parts: of the agent.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._room = threading.BoundedSemaphore(_AT_ONCE)

    def start(self) -> None:
        """Clear up what a killed trial left."""
        self._parts.trials.start()

    def stop(self) -> None:
        """Clear up no more."""
        self._parts.trials.stop()

    def host(self) -> DoctorReport:
        """Examine this host.

        Raises:
            Conflict: others are at it already (``doctor-busy``).
        """
        with self._turn():
            return self._host()

    def _host(self) -> DoctorReport:
        began = time.monotonic()
        config = self._parts.config
        look, findings = look_at_libvirt(self._parts.hypervisor, config.agent.libvirt_uri)
        probes = {**system_probes(config, look), **host_probes(self._parts, look)}
        findings += run_probes(probes, limit=HOST_LIMIT)
        return make_report(self._parts.identity.name, None, findings, began)

    def vm(self, vm: str, replica: Replica | None, *, trial: bool) -> DoctorReport:
        """Examine one VM.

        Args:
            vm: its name or UUID.
            replica: what this host holds of it for another one.
            trial: begin and end a real backup job on it.

        Raises:
            NotFound: there is no such VM (``vm-unknown``).
            Conflict: others are at it already (``doctor-busy``).
        """
        with self._turn():
            return self._vm(vm, replica, trial=trial)

    def _vm(self, vm: str, replica: Replica | None, *, trial: bool) -> DoctorReport:
        began = time.monotonic()
        look, findings = look_at_libvirt(self._parts.hypervisor, self._parts.config.agent.libvirt_uri)
        domain = _domain(look, vm)
        if look is not None and domain is None and replica is None:
            # Its error has names that are close.
            self._parts.hypervisor.find(vm)
        if domain is not None:
            findings += self._examine(domain, trial=trial)
        if replica is not None and look is not None:
            looks = {"replica": partial(replica_findings, self._parts, replica)}
            findings += run_probes(looks, limit=VM_LIMIT)
        name = domain.name if domain else replica.record.name if replica else vm
        return make_report(self._parts.identity.name, name, findings, began)

    def _examine(self, domain: DomainLook, *, trial: bool) -> list[Finding]:
        try:
            exam = VmExam(self._parts, domain.vm)
        except VmReplicaError as error:
            return [failed(domain.name, error)]
        return exam.findings(trial=trial)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._room.acquire(blocking=False):
            raise Conflict(
                "doctor-busy",
                f"{_AT_ONCE} examinations run already on this host",
                hint="again when they are done: vmreplica doctor",
                kind="transient",
            )
        try:
            yield
        finally:
            self._room.release()


def make_report(
    host: HostName | None, vm: str | None, findings: Iterable[Finding], began: float, *, agent: bool = True
) -> DoctorReport:
    """Put a report together.

    Args:
        host: this host's name, if it is known.
        vm: the VM's name; None: the host was looked at.
        findings: in any order.
        began: monotonic seconds.
        agent: whether the agent looked.
    """
    shown = arranged(findings)
    return DoctorReport(
        host=host,
        vm=vm,
        version=__version__,
        now=dt.datetime.now(dt.UTC),
        seconds=time.monotonic() - began,
        agent=agent,
        worst=worst(shown),
        findings=shown,
    )


def _domain(look: HostLook | None, vm: str) -> DomainLook | None:
    return next((one for one in look.domains if vm in {one.vm, one.name}), None) if look else None

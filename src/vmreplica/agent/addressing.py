"""New addresses for guests that were failed over: given as soon as their agents answer, and told if that fails.

Beside the failover, never part of it: a guest without an agent runs as well. The wish is persisted with the failover
before the guest starts; killed anywhere, the next agent goes on. Giving the same addresses again changes nothing.
"""

import datetime as dt
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from defusedxml.ElementTree import fromstring

from vmreplica.failover.addresses import mac_of, program_for
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.addresses import AddressPlan
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.repository import Replica, Repository

_log: Final = structlog.get_logger(__name__)

#: Seconds between two looks for guests that wait.
_LOOK: Final = 2.0
#: Seconds that a guest has to boot until its agent answers.
_PATIENCE: Final = 900.0
#: Seconds that setting one interface may take in the guest.
_LIMIT: Final = 60.0


class _NotYet(Exception):
    """The guest's agent does not answer; the text says what it did."""


@dataclass(frozen=True, slots=True)
class _Test:
    replica: Replica
    vm: VmId
    since: dt.datetime


class Addressing:
    """Looks after all guests that wait for addresses. Thread-safe.

    Args:
        repository: whose records have the wishes.
        hypervisor: this host's libvirt.
    """

    def __init__(self, repository: Repository, hypervisor: Hypervisor) -> None:
        self._repository = repository
        self._hypervisor = hypervisor
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="addressing", daemon=True)
        self._lock = threading.Lock()
        #: Test failovers that wait; one that the agent forgets by a restart keeps the addresses it has.
        self._tests: list[_Test] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the guest that is at work."""
        self._stopped.set()
        self._thread.join()

    def add_test(self, replica: Replica, vm: VmId) -> None:
        """Give the addresses of a VM to its copy, too."""
        if replica.record.addresses:
            with self._lock:
                self._tests.append(_Test(replica, vm, dt.datetime.now(dt.UTC)))

    def _keep_looking(self) -> None:
        while not self._stopped.wait(_LOOK):
            for replica in self._repository.replicas():
                self._look_at(replica)
            for test in self._waiting_tests():
                self._look_at_test(test)

    def _waiting_tests(self) -> Iterator[_Test]:
        with self._lock:
            tests = list(self._tests)
        yield from tests

    def _look_at(self, replica: Replica) -> None:
        record = replica.record
        wish, failover = record.addressing, record.failover
        if wish is None or wish.state != "waiting" or failover is None or not failover.started:
            return
        if failover.hold != wish.hold:
            return
        told = self._try(replica, record.vm, wish.since)
        if told is not None:
            result = {"state": "failed" if told else "done", "told": told}
            replica.update(addressing=wish.model_copy(update=result))

    def _look_at_test(self, test: _Test) -> None:
        known = any(other.vm == test.vm for other in test.replica.record.tests)
        if not known or self._try(test.replica, test.vm, test.since) is not None:
            with self._lock:
                self._tests.remove(test)

    def _try(self, replica: Replica, vm: VmId, since: dt.datetime) -> str | None:
        """Give a guest its addresses; tells why that failed, nothing when it was done, None to try again."""
        try:
            told = "; ".join(self._give(vm, replica.record.addresses))
        except _NotYet as error:
            if (dt.datetime.now(dt.UTC) - since).total_seconds() < _PATIENCE:
                return None
            told = f"its guest agent does not answer ({error})"
        except VmReplicaError as error:
            told = error.message
        if told:
            _log.warning("a guest has not got its addresses", vm=vm, name=replica.record.name, why=told)
        else:
            _log.info("a guest has got its addresses", vm=vm, name=replica.record.name)
        return told

    def _give(self, vm: VmId, addresses: Mapping[str, AddressPlan]) -> Iterator[str]:
        shell = self._hypervisor.guest_shell(vm)
        try:
            system = shell.system()
        except VmReplicaError as error:
            raise _NotYet(error.message) from error
        macs = self._macs(vm)
        for key, plan in sorted(addresses.items()):
            mac = mac_of(key, macs)
            if mac is None:
                yield f"it has no interface {key}"
                continue
            program = program_for(system, mac, plan)
            code, text = shell.run(program.path, program.args, limit=_LIMIT)
            if code != 0:
                yield f"interface {key}: {text.strip() or f'exit code {code}'}"

    def _macs(self, vm: VmId) -> list[str]:
        root = fromstring(self._hypervisor.inspect(vm).definition, forbid_dtd=True)
        return [mac.get("address", "") for mac in root.iterfind("devices/interface/mac")]

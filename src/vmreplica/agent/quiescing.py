"""Application-consistent points: the guest's own agent freezes its file systems, around a backup job's begin only.

Quiescing never costs a point: when it fails, the point is taken all the same, marked crash-consistent with the reason.
"""

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from vmreplica.agent.frozen import Freeze, FrozenGuests
from vmreplica.agent.journal import Journal
from vmreplica.fsio import publish_bytes
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import NoSpace, VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.model.point import Consistency, PointOpening
from vmreplica.model.policy import Policy
from vmreplica.model.proof import QuiesceFacts
from vmreplica.model.quiesce import Quiescence, QuiesceRecord, is_due
from vmreplica.spool import SpoolPoint

_log: Final = structlog.get_logger(__name__)

#: Bytes of a reason that travels with a point.
_MAX_FAILURE: Final = 500
#: Code and text.
_Failure = tuple[str, str]


class Quiescer:
    """Thread-safe, but only one thread may work on a VM at a time.

    Args:
        state_dir: of the agent.
        hypervisor: this host's libvirt.
        journal: is told when quiescing begins to fail or works again, and of guests that stay frozen.
        limit: seconds for which a guest may be frozen.
    """

    def __init__(self, state_dir: Path, hypervisor: Hypervisor, journal: Journal, limit: float) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._limit = limit
        self._records = state_dir / "quiesce"
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        #: Records that could not be written down: without them a guest would be disturbed with every point.
        self._unwritten: dict[VmId, QuiesceRecord] = {}
        self._frozen = FrozenGuests(state_dir / "frozen", hypervisor, journal)

    def start(self) -> None:
        """Thaw what an earlier agent left frozen."""
        self._frozen.start()

    def stop(self) -> None:
        """End the tries to thaw."""
        self._frozen.stop()

    def attempt(self, vm: VmId, name: str, policy: Policy) -> "Attempt | None":
        """Begin to quiesce a running VM for a point, if that is due; nothing is frozen before ``Attempt.instant``."""
        record = self._record(vm)
        if not is_due(policy.app_consistent, record, interval=policy.interval, now=dt.datetime.now(dt.UTC)):
            return None
        attempt = Attempt(lambda: self._frozen.begin(vm, name, self._limit))
        obstacle = self._obstacle(vm, name)
        if obstacle is not None:
            attempt.fail(*obstacle)
        return attempt

    def mark(self, point: SpoolPoint, attempt: "Attempt") -> None:
        """Say in a point how consistent it has become, and remember how it went.

        Without room to say so the point stays crash-consistent, as it was begun: that is never too much.
        """
        try:
            point.settle(attempt.consistency, attempt.result.failure or "")
        except NoSpace as error:
            _log.warning("cannot write down how consistent a point is", vm=point.opening.vm, why=error.message)
            attempt.unwritten(error)
        self.tried(point.opening.vm, attempt)

    def tried(self, vm: VmId, attempt: "Attempt") -> None:
        """Remember how it went; a success counts only when the replica has its point."""
        record, went = self._record(vm), attempt.result
        if went.failure is None:
            if record.failures:
                self._journal.event(vm, "quiesce", "quiesced-again", "the guest can be quiesced again")
            self._write(vm, record.model_copy(update={"failures": 0, "code": "", "failure": "", "tried": None}))
            return
        if went.code != record.code:
            _log.warning("a guest was not quiesced", vm=vm, code=went.code, why=went.failure)
            text = f"a point is only crash-consistent: {went.failure}"
            self._journal.event(vm, "quiesce", went.code, text, severity="warning")
        tried = dt.datetime.now(dt.UTC) if attempt.disturbed else record.tried
        update = {"failures": record.failures + 1, "code": went.code, "failure": went.failure, "tried": tried}
        self._write(vm, record.model_copy(update=update))

    def published(self, opening: PointOpening) -> None:
        """Take note of a point that the replica has."""
        record = self._record(opening.vm)
        if opening.consistency == "application":
            self._write(opening.vm, record.model_copy(update={"good": opening.instant, "since": 0}))
        elif record.good is not None:
            self._write(opening.vm, record.model_copy(update={"since": record.since + 1}))

    def facts(self, vm: VmId, policy: Policy) -> QuiesceFacts:
        """Tell what health is judged by."""
        record = self._record(vm) if policy.app_consistent.wanted else QuiesceRecord()
        return QuiesceFacts(failures=record.failures, text=record.failure, frozen=self._frozen.overdue(vm))

    def forget(self, vm: VmId) -> None:
        """Forget a VM that is protected no more; one that is frozen is thawed all the same."""
        self._unwritten.pop(vm, None)
        self._path(vm).unlink(missing_ok=True)

    def _obstacle(self, vm: VmId, name: str) -> _Failure | None:
        """Say why a guest cannot be quiesced now; asks its agent, which costs the guest nothing."""
        if self._frozen.since(vm) is not None:
            return "guest-frozen", f"{name} may still be frozen since an earlier point"
        try:
            power = self._hypervisor.power_switch().look(vm)
            if not power.awake:
                return "vm-paused", f"{name} is paused"
            if not power.agent:
                return "guest-agent-absent", f"no guest agent is connected in {name}"
            if self._hypervisor.guest_freezer(vm, name).frozen():
                return "frozen-by-others", f"the file systems of {name} are frozen already, not by vmreplica"
        except VmReplicaError as error:
            return error.code, error.message
        return None

    def _record(self, vm: VmId) -> QuiesceRecord:
        kept = self._unwritten.get(vm)
        if kept is not None:
            return kept
        try:
            return QuiesceRecord.model_validate_json(self._path(vm).read_bytes())
        except (OSError, ValidationError):
            return QuiesceRecord()

    def _write(self, vm: VmId, record: QuiesceRecord) -> None:
        """Never fails: what cannot be written is kept in memory until the next record can."""
        try:
            publish_bytes(self._path(vm), record.model_dump_json().encode(), durable=False)
        except (OSError, NoSpace) as error:
            _log.warning("cannot write down how quiescing went", vm=vm, why=str(error))
            self._unwritten[vm] = record
            return
        self._unwritten.pop(vm, None)

    def _path(self, vm: VmId) -> Path:
        return self._records / f"{vm}.json"


class Attempt:
    """Quiescing one guest for one point.

    Args:
        begin: writes down that the guest is about to be frozen, and watches over it from then on.
    """

    def __init__(self, begin: Callable[[], Freeze]) -> None:
        self._begin = begin
        #: How it went; an attempt that never came to its instant has not worked.
        self.result = Quiescence(failure="the backup job did not begin", code="backup-not-begun")
        self._refused = False
        #: Whether the guest was asked to freeze.
        self.disturbed = False

    @property
    def consistency(self) -> Consistency:
        """Of the point."""
        return "crash" if self.result.failure else "application"

    def fail(self, code: str, failure: str) -> None:
        """Say that the guest cannot be quiesced: nothing will be asked of it."""
        self._refused = True
        self._failed((code, failure))

    def unwritten(self, error: VmReplicaError) -> None:
        """Say that the point could not be marked application-consistent, though it is; an older failure stays."""
        if self.result.failure is None:
            self._failed((error.code, error.message))

    @contextlib.contextmanager
    def instant(self) -> Iterator[None]:
        """Keep the guest frozen in the block if it can be frozen; raises nothing of its own."""
        asked = time.monotonic()
        freeze = None if self._refused else self._freeze()
        if freeze is None:
            yield
            return
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self._thaw(freeze)
            freeze.settle()
            raise
        begin = time.monotonic() - began
        failure = self._thaw(freeze)
        thawed = time.monotonic()
        if not freeze.settle():
            failure = failure or ("guest-frozen", "the guest does not confirm that it has thawed")
        times = {"frozen": thawed - asked, "held": thawed - began, "begin": begin}
        self.result = Quiescence(file_systems=freeze.systems, **times)
        if failure is not None:
            self._failed(failure)

    def _freeze(self) -> Freeze | None:
        """Freeze; a freeze that fails is undone at once, as it may have worked in part."""
        freeze: Freeze | None = None
        try:
            freeze = self._begin()
            self.disturbed = True
            freeze.freeze()
        except VmReplicaError as error:
            self._failed((error.code, error.message))
            if freeze is not None:
                self._thaw(freeze)
                freeze.settle()
            return None
        return freeze

    def _thaw(self, freeze: Freeze) -> _Failure | None:
        """Thaw; says why the guest was not frozen all the time, if it was not."""
        late = freeze.overdue
        try:
            thawed = freeze.thaw()
        except VmReplicaError as error:
            return error.code, error.message
        if late or (thawed == 0 and freeze.overdue):
            return "freeze-too-long", "the guest was frozen for too long and was thawed by the watchdog"
        if freeze.systems == 0:
            return "nothing-frozen", "the guest agent froze no file system"
        if thawed == 0:
            return "freeze-did-not-hold", "the guest agent froze, but nothing was frozen any more in the end"
        return None

    def _failed(self, failure: _Failure) -> None:
        code, text = failure
        self.result = self.result.model_copy(update={"failure": text[:_MAX_FAILURE], "code": code})

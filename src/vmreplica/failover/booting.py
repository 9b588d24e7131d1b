"""One boot test: a copy is started beside the VM, isolated, watched for a sign of life, pictured, and removed.

The copy is a test failover with a mark: whatever happens, the next look of the upkeep after its time, or the next start
of the agent, removes it. What it came to is kept with the point before the copy goes.
"""

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from vmreplica.failover.plan import StepHook, no_hook, plan_test
from vmreplica.failover.signs import Sign, shown, signs_of
from vmreplica.failover.tests import FailoverTests, console_of
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.life import Life, LifeState
from vmreplica.hypervisor.picture import to_png
from vmreplica.model.boot import BootResult, BootVerdict, BootWish
from vmreplica.model.errors import Conflict, NoSpace, NotFound, Unreachable, VmReplicaError
from vmreplica.model.ids import LATEST, LATEST_APP, PointChoice, PointId, VmId
from vmreplica.model.point import PointSummary
from vmreplica.model.report import FailoverPlan, FailoverStep, FailoverTest
from vmreplica.model.units import MiB, format_duration, format_size
from vmreplica.repository import Replica, ReplicaRecord

_log: Final = structlog.get_logger(__name__)

#: Seconds between two looks for a sign.
_LOOK: Final = 0.5
#: Seconds that a copy may take longer than its guest: to be started, pictured and removed.
_GRACE: Final = 300
#: Memory that QEMU takes besides the guest's own.
_OVERHEAD: Final = 256 * MiB
#: Share of the host's memory that stays available for what the host does besides.
_RESERVE: Final = 20
_MAX_TOLD: Final = 600


class GivenWay(Exception):
    """The test was ended before its time; the text says why."""


class Watch(Protocol):
    """Who wants to know how a test gets on, and may end it."""

    def phase(self, text: str) -> None:
        """Take note of what is going on."""

    def wait(self, seconds: float) -> None:
        """Wait.

        Raises:
            GivenWay: it shall end.
        """


@dataclass(frozen=True, slots=True)
class _Outcome:
    verdict: BootVerdict
    sign: str
    seconds: float | None
    told: str = ""


def plan_boot(
    record: ReplicaRecord, points: Sequence[PointSummary], point: PointChoice | None, wish: BootWish, *, leads_out: bool
) -> FailoverPlan:
    """Plan a boot test: that of a test failover, and what follows. The newest points are the newest sound ones.

    Raises:
        Conflict, NotFound: see ``plan.plan_test``.
        Corrupt: ``point-damaged``: that is known already.
    """
    newest = point in {None, LATEST, LATEST_APP}
    sound = [known for known in points if not known.damaged] if newest else points
    plan = plan_test(record, sound or points, point, network=wish.network, leads_out=leads_out)
    limit = format_duration(wish.limit)
    steps = (
        FailoverStep(name="wait", text=f"wait at most {limit} for {wish.sign.described()}"),
        FailoverStep(name="picture", text="take a screenshot, if it has a display"),
        FailoverStep(name="keep", text="keep the verdict with the point"),
        FailoverStep(name="remove", text="remove the copy with every trace"),
    )
    return plan.model_copy(
        update={
            "kind": "boot-test",
            "steps": (*plan.steps, *steps),
            "after": (
                f"here: no copy is left; `vmreplica points {record.name}` shows the verdict",
                f"{record.name} itself: nothing changes, wherever it runs",
            ),
        }
    )


def require_memory(name: str, wanted: int, *, total: int, available: int) -> None:
    """See that a copy would not take memory that others need. Pure.

    Args:
        name: of the VM.
        wanted: bytes of its own memory.
        total: bytes of the host.
        available: of these, bytes that are not in use.

    Raises:
        NoSpace: ``memory-short``.
    """
    needed = wanted + _OVERHEAD + total // _RESERVE
    if available < needed:
        raise NoSpace(
            "memory-short",
            f"a copy of {name} needs {format_size(wanted)} of memory; {format_size(available)} are available here, "
            f"and {format_size(_OVERHEAD + total // _RESERVE)} have to stay",
            hint="shut down what is not needed on this host, or test at another time: --every 1d --at 03:00",
        )


class BootTest:
    """One of them.

    Args:
        replica: of the VM.
        hypervisor: this host's libvirt.
        tests: the test failovers here.
        wish: how.
        watch: who looks on.
        started: is told the id of the copy that was started.
        before: observer of steps; tests kill the agent there.
    """

    def __init__(
        self,
        replica: Replica,
        hypervisor: Hypervisor,
        tests: FailoverTests,
        wish: BootWish,
        *,
        watch: Watch,
        started: Callable[[VmId], None] = lambda _vm: None,
        before: StepHook = no_hook,
    ) -> None:
        self._replica = replica
        self._hypervisor = hypervisor
        self._tests = tests
        self._wish = wish
        self._watch = watch
        self._told_started = started
        self._before = before
        self._began = time.monotonic()
        self._started = dt.datetime.now(dt.UTC)
        #: What the definition lost on its way here.
        self.notes: tuple[str, ...] = ()

    def run(self, plan: FailoverPlan) -> BootResult:
        """Do it; afterwards nothing of the copy is left, whatever comes.

        Raises:
            GivenWay: something else takes precedence; there is no verdict.
            VmReplicaError: nothing can be said about the point: libvirt is away, the store is full...
        """
        self._watch.phase("starting the copy")
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self._wish.limit + _GRACE)
        try:
            test, self.notes = self._tests.start(
                self._replica, plan, network=self._wish.network, until=until, boot=True
            )
        except VmReplicaError as error:
            return self._not_started(plan, error)
        try:
            return self._watched(test)
        finally:
            self._remove(test)

    # ---- helpers

    def _not_started(self, plan: FailoverPlan, error: VmReplicaError) -> BootResult:
        """Take a refusal of this host for the verdict that it is: a failover would fail as well."""
        # libvirt refuses with a transient kind what it will refuse again; what is away or full says nothing of a point.
        if isinstance(error, NoSpace | Unreachable | NotFound | Conflict) or error.code in {
            "libvirt-timeout",
            "vm-busy",
        }:
            raise error
        outcome = _Outcome("not-started", self._wish.sign.described(), None, error.message)
        return self._kept(plan.point, outcome, None)

    def _remove(self, test: FailoverTest) -> None:
        self._before("remove")
        self._watch.phase("removing the copy")
        try:
            self._tests.remove(self._replica, test.vm)
        except VmReplicaError as error:
            _log.warning("a boot test's copy stays for now", name=test.name, code=error.code, why=error.message)

    def _watched(self, test: FailoverTest) -> BootResult:
        self._told_started(test.vm)
        life = self._hypervisor.life(test.vm)
        record = next((known for known in self._replica.record.tests if known.vm == test.vm), None)
        if record is None:
            raise GivenWay("it was taken back")
        signs = signs_of(self._wish.sign, life, console_of(self._replica, record.id), self._environment(test))
        self._before("life")
        try:
            outcome = self._outcome(signs, life, test)
        except NotFound as error:
            raise GivenWay("its copy is gone") from error
        finally:
            for sign in signs:
                sign.close()
        self._before("picture")
        self._watch.phase("taking a picture")
        picture, missing = _picture(life) if outcome.verdict != "off" else (None, "")
        told = "; ".join(filter(None, (outcome.told, missing)))
        return self._kept(test.point, _Outcome(outcome.verdict, outcome.sign, outcome.seconds, told), picture)

    def _environment(self, test: FailoverTest) -> Mapping[str, str]:
        record = self._replica.record
        return {
            "VMREPLICA_VM": record.name,
            "VMREPLICA_VM_UUID": record.vm,
            "VMREPLICA_COPY": test.name,
            "VMREPLICA_COPY_UUID": test.vm,
            "VMREPLICA_POINT": test.point,
            "VMREPLICA_NETWORK": test.network or "",
        }

    def _outcome(self, signs: Sequence[Sign], life: Life, test: FailoverTest) -> _Outcome:
        """Wait for any of the signs, the copy's end, or the limit."""
        began = time.monotonic()
        waited_for = self._wish.sign.described()
        self._watch.phase(f"waiting at most {format_duration(self._wish.limit)} for {waited_for}")
        while True:
            self._watch.wait(_LOOK)
            over = time.monotonic() - began >= self._wish.limit
            try:
                for seen in filter(None, (sign.look() for sign in signs)):
                    return _Outcome("alive", seen, time.monotonic() - began)
                state = self._state(life, test)
            except VmReplicaError as error:
                # libvirt was restarted, or hangs: the guest runs on, and it is asked again.
                if over or isinstance(error, NotFound):
                    raise
                continue
            if state == "off":
                return _Outcome("off", waited_for, None, _told(signs))
            if over:
                paused = "QEMU has paused it: a disk failed, or it crashed" if state == "paused" else ""
                return _Outcome("silent", waited_for, None, "; ".join(filter(None, (paused, _told(signs)))))

    def _state(self, life: Life, test: FailoverTest) -> LifeState:
        """Look at the copy itself.

        Raises:
            GivenWay: it was taken back, which begins with its plug.
        """
        state = life.state()
        known = any(other.vm == test.vm for other in self._replica.record.tests)
        if not known or (state == "off" and not self._tests.wanted(self._replica, test.vm)):
            raise GivenWay("it was taken back")
        return state

    def _kept(self, point: PointId, outcome: _Outcome, picture: bytes | None) -> BootResult:
        self._before("keep")
        result = BootResult(
            point=point,
            started=self._started,
            verdict=outcome.verdict,
            sign=outcome.sign,
            seconds=outcome.seconds,
            limit=self._wish.limit,
            took=time.monotonic() - self._began,
            network=self._wish.network,
            picture=picture is not None,
            told=shown(outcome.told)[:_MAX_TOLD],
        )
        self._replica.boots.keep(result, picture)
        return result


def _told(signs: Sequence[Sign]) -> str:
    return "; ".join(filter(None, (sign.told() for sign in signs)))


def _picture(life: Life) -> tuple[bytes | None, str]:
    """Take a picture; without one, tell why: that is no failure of the guest."""
    try:
        return to_png(life.screenshot()), ""
    except VmReplicaError as error:
        return None, f"no picture: {error.message}"

"""What this host knows of failovers of its own VMs: a fence file for each, over restarts of everything."""

import threading
import time
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.agent.may_start import elsewhere, lives_there
from vmreplica.hypervisor.fence import Fence
from vmreplica.model.errors import NoSpace, NotFound
from vmreplica.model.ids import HostId, VmId, VmName
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.peer.book import PeerBook

_log: Final = structlog.get_logger(__name__)

#: Seconds for which the same refusal is not written down again.
_REFUSED_AGAIN: Final = 600.0
#: By these words the fence of a planned failover is told from others.
_MOVING: Final = " is moving to its replica: "


def moving(name: VmName) -> str:
    """Say why a VM that is handed over by a planned failover does not start."""
    return f"{name}{_MOVING}vmreplica failover {name} --planned goes on, --cancel goes back"


class Guard:
    """Thread-safe; told of each position that a replica tells, whoever asked for it.

    Args:
        fence: the files.
        book: paired hosts.
        journal: history.
    """

    def __init__(self, fence: Fence, book: PeerBook, journal: Journal) -> None:
        self.fence = fence
        self.journal = journal
        self._book = book
        self._lock = threading.Lock()
        #: When (monotonic) and why each VM was last kept from starting.
        self._refusals: dict[VmId, tuple[float, str]] = {}

    def fenced(self, vm: VmId) -> bool:
        """Tell whether a VM of this host is known to live on its replica."""
        record = self.fence.find(vm)
        return record is not None and record.ask

    def saw(self, vm: VmId, name: VmName, policy: Policy, position: Position) -> bool:
        """Take note of what a replica said; gives whether the VM lives there.

        A fence of another kind (of a planned failover) is left alone: it says more.
        """
        known = self.fence.find(vm)
        if known is not None and not known.ask:
            return False
        if not lives_there(position, policy):
            if known is not None:
                _log.info("its failover was taken back: the VM may start here again", vm=vm, name=name)
                self.fence.allow(vm)
                text = "its failover was taken back: it may start here again"
                self.journal.event(vm, "fencing", "unfenced", text, name=name)
            return False
        if known is None:
            _log.warning("failed over elsewhere: the VM may not start here", vm=vm, name=name, epoch=position.epoch)
            text = f"it was failed over to {self.peer_name(policy.replica)}: it may not start here"
            self.journal.event(vm, "fencing", "fenced", text, name=name, severity="critical", epoch=position.epoch)
        try:
            self.fence.forbid(vm, elsewhere(name, self.peer_name(policy.replica), position.state), ask=True)
        except NoSpace as error:
            _log.warning("the fence of a VM cannot be written", vm=vm, why=error.message)
        return True

    def left_by_planned(self, vm: VmId) -> bool:
        """Tell whether a planned failover forbade the start of a VM; only it can lift that, so it must be under way."""
        known = self.fence.find(vm)
        return known is not None and not known.ask and _MOVING in known.reason

    def forget_planned(self, vm: VmId, name: VmName) -> None:
        """Lift what a planned failover forbade that is not under way any more: from now on the replica is asked."""
        _log.info("a planned failover that is no more forbids its start no longer", vm=vm, name=name)
        self.fence.allow(vm)

    def refused(self, vm: VmId, name: VmName, reason: str) -> None:
        """Write down that a VM was kept from starting here; one that is asked for again and again once in a while."""
        now = time.monotonic()
        with self._lock:
            last, self._refusals[vm] = self._refusals.get(vm), (now, reason)
            if last is not None and last[1] == reason and now - last[0] < _REFUSED_AGAIN:
                self._refusals[vm] = last
                return
        text = f"it was kept from starting here: {reason}"
        self.journal.event(vm, "fencing", "start-refused", text, name=name, severity="warning")

    def started(self, vm: VmId, name: VmName, *, sure: bool) -> None:
        """Write down that a VM was started here through us."""
        if sure:
            text = "it was started here though its replica did not agree: a person was sure"
            self.journal.event(vm, "start", "start-forced", text, name=name, severity="warning")
        else:
            self.journal.event(vm, "start", "started", "it was started here, its replica agreed", name=name)

    def peer_name(self, host: HostId) -> str:
        """Tell what a host is called here."""
        try:
            return self._book.by_id(host).name
        except NotFound:
            return f"host {host[:8]}, no longer paired"

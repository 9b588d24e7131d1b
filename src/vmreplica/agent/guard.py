"""What this host knows of failovers of its own VMs: a fence file for each, over restarts of everything."""

from typing import Final

import structlog

from vmreplica.agent.may_start import elsewhere, is_stale
from vmreplica.hypervisor.fence import Fence
from vmreplica.model.errors import NoSpace, NotFound
from vmreplica.model.ids import HostId, VmId, VmName
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.peer.book import PeerBook

_log: Final = structlog.get_logger(__name__)


class Guard:
    """Thread-safe; told of each position that a replica tells, whoever asked for it.

    Args:
        fence: the files.
        book: paired hosts.
    """

    def __init__(self, fence: Fence, book: PeerBook) -> None:
        self.fence = fence
        self._book = book

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
        if not is_stale(position, policy.epoch):
            if known is not None:
                _log.info("its failover was taken back: the VM may start here again", vm=vm, name=name)
                self.fence.allow(vm)
            return False
        if known is None:
            _log.warning("failed over elsewhere: the VM may not start here", vm=vm, name=name, epoch=position.epoch)
        try:
            self.fence.forbid(vm, elsewhere(name, self.peer_name(policy.replica), position.state), ask=True)
        except NoSpace as error:
            _log.warning("the fence of a VM cannot be written", vm=vm, why=error.message)
        return True

    def peer_name(self, host: HostId) -> str:
        """Tell what a host is called here."""
        try:
            return self._book.by_id(host).name
        except NotFound:
            return f"host {host[:8]}, no longer paired"

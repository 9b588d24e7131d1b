"""Both hosts of a planned failover as far as its run on the primary sees them: one VM, no libvirt, no network."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vmreplica.agent.fencing import Fencing
from vmreplica.agent.guard import Guard
from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.planned_run import Run, Tools
from vmreplica.agent.relationship import Relationship
from vmreplica.hypervisor.fence import Fence
from vmreplica.model.errors import NotFound, VmReplicaError
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.states import State
from vmreplica.peer.book import PeerBook
from vmreplica.peer.line import Halt
from vmreplica.peer.planned import PlannedWish
from vmreplica.peer.wire import RunsHere

VM = "4dea22b3-1d52-4dc8-8c9c-9bc0bb4a1b2c"
HOST = "ab" * 16
POINT = "20260101T000000Z-00000000"


class SmallLibvirt:
    """This host's libvirt with one VM."""

    def __init__(self, policy: Policy, *, on: bool) -> None:
        self.known, self.on = policy, on
        self.starts = 0

    def running(self, _vm: str) -> bool:
        """Tell whether it runs."""
        return self.on

    def policy(self, _vm: str) -> Policy:
        """Tell its policy, as it is read back from its metadata."""
        return Policy.model_validate_json(self.known.model_dump_json())

    def set_policy(self, _vm: str, policy: Policy) -> None:
        """Write it."""
        self.known = policy

    def start(self, _vm: str) -> None:
        """Start it."""
        self.on = True
        self.starts += 1


class SmallReplica:
    """The other host; what it says is set by tests."""

    def __init__(self) -> None:
        self.state, self.epoch = State.REPLICATING, 0
        self.refuses: VmReplicaError | None = None
        #: Why there is no answer; None: there is one.
        self.silent: VmReplicaError | None = None
        #: Called when its position is asked for.
        self.asked: Callable[[], None] = lambda: None
        #: As an old primary: the epoch of the VM that is there still; None: there is none.
        self.primary_epoch: int | None = None

    def to(self, _host: str) -> "SmallReplica":
        """Give the connection."""
        return self

    def on(self, _line: object) -> "SmallReplica":
        """Give the connection."""
        return self

    @contextlib.contextmanager
    def quick(self, _host: str) -> Iterator["SmallReplica"]:
        """Give the connection."""
        yield self

    def position(self, vm: str) -> Position:
        """Tell where it is, and let tests act just after that."""
        if self.silent is not None:
            raise self.silent
        said = Position(vm=vm, state=self.state, epoch=self.epoch, latest=None, incoming=None, free_bytes=0)
        self.asked()
        return said

    def runs_here(self, vm: str) -> RunsHere:
        """Tell of its own VM."""
        if self.primary_epoch is None:
            raise NotFound("vm-unknown", "no such VM")
        return RunsHere(vm=vm, runs=False, epoch=self.primary_epoch)

    def start_planned(self, _vm: str, _wish: object) -> None:
        """Refuse, or have it."""
        if self.refuses is not None:
            raise self.refuses
        self.state, self.epoch = State.FAILED_OVER, self.epoch + 1


class SmallRunner:
    """Keeps a relationship up to date, nothing else."""

    def __init__(self, guard: Guard, libvirt: SmallLibvirt) -> None:
        self._guard, self._libvirt = guard, libvirt

    def update(self, rel: Relationship, policy: Policy) -> None:
        """Put a policy in force."""
        rel.policy = policy

    def amend(self, rel: Relationship, change: Callable[[Policy], Policy]) -> Policy:
        """Change a policy where it is written."""
        rel.policy = change(self._libvirt.policy(rel.vm))
        self._libvirt.set_policy(rel.vm, rel.policy)
        return rel.policy

    def saw(self, rel: Relationship, position: Position) -> None:
        """Take note of what the replica says."""
        rel.fenced = self._guard.saw(rel.vm, rel.name, rel.policy, position)

    def each(self, _change: object) -> None:
        """Show nothing."""


class Side:
    """The primary: a real run, real fences, and what they work with."""

    def __init__(self, base: Path, policy: Policy, *, on: bool) -> None:
        self.fence = Fence(base / "fence")
        self.guard = Guard(self.fence, PeerBook(base / "peers.json"), Journal(base / "journal.db"))
        self.libvirt, self.replica = SmallLibvirt(policy, on=on), SmallReplica()
        self.runner = SmallRunner(self.guard, self.libvirt)
        parts: dict[str, Any] = {"clients": self.replica, "hypervisor": self.libvirt, "runner": self.runner}
        self.starts = Fencing(guard=self.guard, **parts)
        self.rel = Relationship(vm=VM, name="web", policy=policy, due=0.0)
        self.halt = Halt()
        #: Called before each step with its name.
        self.before: Callable[[str], None] = lambda _step: None

    def run(self, wish: PlannedWish | None = None) -> Run:
        """Give a run."""
        stages: Any = SimpleNamespace(hypervisor=self.libvirt)
        small: dict[str, Any] = {"runner": self.runner, "clients": self.replica}
        tools = Tools(stages=stages, ban=self.fence, claim=self.starts.claim, before=self.before, **small)
        return Run(tools, self.rel, Meter(), self.halt, wish or PlannedWish())

"""A protected VM whose agents are killed at chosen instants, and what must be true afterwards."""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.mark import ParameterSet
from job_kit import Document, images, qemu_img
from pydantic import BaseModel

from vmreplica.api.requests import DisableRequest, EnableRequest
from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Unreachable
from vmreplica.model.seed import SeedRequest

Case = tuple[str, str]
_LAUNCHER: Final = Path(__file__).with_name("crashing_agent.py")
#: Segments of one cycle on the line at once: the default of ``limits.connections``.
OPEN_SEGMENTS: Final = 2
#: Points that the replica keeps; it folds older ones after it has answered.
KEEP: Final = 3


@dataclass(frozen=True, slots=True)
class Sending:
    """A segment on its way, as the sender saw it."""

    answered: bool
    point: str
    target: str
    number: int
    size: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is."""
        return self.point, self.target, self.number


class Patient:
    """A VM on host a, replicated to host b every five seconds.

    Asks the agents over their sockets, as the command line does, to spare the time it takes to start.

    Args:
        lab: of two paired hosts.
        name: of the VM.
        uuid: of the VM.
    """

    def __init__(self, lab: Lab, name: str, uuid: str) -> None:
        self.lab = lab
        self.name = name
        self.uuid = uuid
        self.a, self.b = lab.hosts
        self._log = self.a.layout.dir / "sent"
        self._api = AgentClient(self.a.layout.agent_socket)

    # --- replication ----------------------------------------------------------------------------------------------

    def enable(self, seed: SeedRequest | None = None) -> None:
        """Begin to protect it, with a first copy from wherever is said; the agent may be killed while it answers."""

        def enabled() -> bool:
            try:
                self._ask("enable", EnableRequest(to="b", every=5, keep=KEEP, seed=seed), trapped=True)
            except Unreachable as error:
                if error.code != "peer-unreachable":
                    raise
                return False  # the peer's agent has just started and does not listen yet
            return True

        assert until(enabled, 60)

    def disable(self) -> None:
        """Give it up with its copy."""
        self._ask("disable", DisableRequest(delete_copy=True))

    def rest(self) -> None:
        """Let a cycle finish and begin no other: nothing moves until ``resume``."""

        def rested() -> bool:
            self._ask("pause")
            if self.history()[0]["outcome"] == "published":
                return True
            self._ask("resume")  # a cycle that had just begun was cancelled: it left things to clear up
            self.wait_published(self.published() + 1)
            return False

        assert until(rested, 120), self.history()
        assert until(self._folded, 60), self.points()

    def resume(self) -> None:
        """Begin a cycle at once; the agent may be killed while it answers."""
        self._ask("resume", trapped=True)

    def sync(self) -> None:
        """Make a cycle due now."""
        self._ask("sync")

    def history(self) -> list[Document]:
        """List the cycles, newest first."""
        found: list[Document] = json.loads(self._api.get(vm_path(self.name, "history"), limit="1000"))["cycles"]
        return found

    def published(self) -> int:
        """Count the cycles that came to a point."""
        return sum(cycle["outcome"] == "published" for cycle in self.history())

    def wait_published(self, count: int, limit: float = 180.0) -> list[Document]:
        """Wait for so many published cycles; gives all, oldest first."""
        assert until(lambda: self.published() >= count, limit), self.history()
        return [cycle for cycle in reversed(self.history()) if cycle["outcome"] == "published"]

    def points(self) -> list[Document]:
        """List the points, oldest first."""
        found: list[Document] = json.loads(self._api.get(vm_path(self.name, "points")))["points"]
        return found[::-1]

    def require_told(self) -> None:
        """Require that the history has each point once, also those whose run was killed before it could tell."""
        told = [cycle["point"] for cycle in self.history() if cycle["outcome"] == "published"]
        assert len(told) == len(set(told)), told
        assert {point["point"] for point in self.points()} <= set(told)

    def points_held(self) -> list[str]:
        """Name the points that the replica has published, oldest first; asks nobody."""
        manifests = (self.b.layout.store / self.uuid / "points").glob("*/manifest.json")
        return sorted(manifest.parent.name for manifest in manifests)

    def pending(self) -> list[str]:
        """Name the points in the spool."""
        return [path.name for path in (self.a.layout.state_dir / "spool" / self.uuid).glob("[0-9]*")]

    def is_protected(self) -> bool:
        """Tell whether a policy stands in its metadata."""
        return any(row["name"] == self.name for row in json.loads(self._api.get("/v1/status"))["relationships"])

    def images(self, point: str) -> tuple[Path, ...]:
        """Tell a point's images."""
        return images(self.b, self.uuid, point)

    def _folded(self) -> bool:
        store, known = self.b.layout.store / self.uuid, self.points()
        return len(known) <= KEEP and known[0]["parent"] is None and not (store / "fold.json").exists()

    def _ask(self, verb: str, body: BaseModel | None = None, *, trapped: bool = False) -> None:
        try:
            self._api.send("POST", vm_path(self.name, verb), body, timeout=120)
        except Unreachable as error:
            if not trapped or error.code not in {"agent-connection-lost", "agent-not-running"}:
                raise

    # --- agents ---------------------------------------------------------------------------------------------------

    def start_agent(self, host: Host, trap: str = "") -> None:
        """Run the real agent with the tap, and with a trap, in place of whatever agent runs."""
        host.stop_agent()
        log = host.layout.dir / "sent"
        host.start_agent(["env", f"VMREPLICA_TRAP={trap}", f"VMREPLICA_SENT={log}", sys.executable, str(_LAUNCHER)])

    def set_trap(self, host: Host, trap: str) -> None:
        """Begin a new account of what is sent, with a tapped agent on a and a trapped one on the host."""
        for each in (self.a, self.b):
            (each.layout.dir / "sent").write_text("")
        if host is not self.a and not self._is_tapped():
            self.start_agent(self.a)
        with contextlib.suppress(Unreachable):  # it may run into the trap at once
            self.start_agent(host, trap)

    def wait_trapped(self, host: Host, limit: float = 120.0) -> None:
        """Wait until the agent has killed itself."""
        assert until(lambda: host.agent_pid is None, limit), "the trap did not spring"
        assert "trapped" in (host.layout.dir / "sent").read_text().split("\n"), host.layout.agent_log.read_text()[
            -2000:
        ]

    def sendings(self) -> list[Sending]:
        """Read what the agents on a sent since the trap was set."""
        lines = (line.split() for line in self._log.read_text().splitlines())
        return [
            Sending(how == "answered", rest[1], rest[2], int(rest[3]), int(rest[4]))
            for how, *rest in lines
            if rest and rest[0] == self.uuid
        ]

    def _is_tapped(self) -> bool:
        pid = self.a.agent_pid
        return pid is not None and str(_LAUNCHER).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()

    # --- what must be true ----------------------------------------------------------------------------------------

    def require_nothing_twice(self) -> None:
        """Require that no answered segment was sent again, and no more were sent twice than can be open at once."""
        answered: set[tuple[str, str, int]] = set()
        begun: set[tuple[str, str, int]] = set()
        twice = 0
        for sending in self.sendings():
            if sending.answered:
                answered.add(sending.key)
                continue
            assert sending.key not in answered, f"sent again although it was answered: {sending}"
            twice += sending.key in begun
            begun.add(sending.key)
        assert twice <= OPEN_SEGMENTS, self._log.read_text()

    def require_sound_points(self) -> None:
        """Require of every point that its images are whole and stand on each other as the list says."""
        known = self.points()
        assert known
        for older, point in zip([None, *known], known, strict=False):
            assert point["parent"] in {None, older["point"] if older else None}, known
            found = self.images(point["point"])
            assert len(found) == len(point["disks"])
            for image in found:
                qemu_img("check", "-q", str(image))

    def require_clean(self) -> None:
        """Require that a resting VM has one checkpoint, unseen by others, and nothing else of ours anywhere."""
        checkpoint = self.points()[-1]["checkpoint"]
        assert self.a.virsh("checkpoint-list", self.name, "--name").stdout.split() == []
        assert self._bitmaps() == {checkpoint}
        assert self.a.virsh("backup-dumpxml", self.name, check=False).returncode != 0
        state, runtime = self.a.layout.state_dir, self.a.layout.runtime_dir
        assert _files(state / "checkpoints" / self.uuid) == [f"{checkpoint}.xml"]
        assert _files(state / "spool" / self.uuid) == []
        assert _files(runtime / "scratch" / self.uuid) == []
        assert _files(runtime / "nbd" / self.uuid.replace("-", "")[:12]) == []
        self._require_clean_store()

    def _require_clean_store(self) -> None:
        store = self.b.layout.store / self.uuid
        assert list((store / "incoming").iterdir()) == []
        assert not (store / "fold.json").exists()
        assert [path.name for path in store.rglob(".*")] == []
        assert {path.name for path in (store / "points").iterdir()} == {point["point"] for point in self.points()}

    def _bitmaps(self) -> set[str]:
        """Name all bitmaps in the memory of the VM's QEMU."""
        said = self.a.virsh("qemu-monitor-command", self.name, '{"execute": "query-named-block-nodes"}').stdout
        nodes: list[dict[str, Any]] = json.loads(said)["return"]
        return {bitmap.get("name", "") for node in nodes for bitmap in node.get("dirty-bitmaps", ())}


def kills(quick: Sequence[Case], thorough: Sequence[Case]) -> list[ParameterSet]:
    """Make parameters of host and trap; the thorough ones are left out by ``make test``."""
    return [pytest.param(*case) for case in quick] + [pytest.param(*case, marks=pytest.mark.slow) for case in thorough]


def running_programs(lab: Lab) -> list[list[str]]:
    """Name what runs on each host."""
    return [sorted(filter(None, map(_program, host.namespace.processes()))) for host in lab.hosts]


def _program(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]
    except OSError:
        return None


def _files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if not path.is_dir())

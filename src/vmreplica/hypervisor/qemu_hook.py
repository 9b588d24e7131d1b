"""What libvirt's hook asks before a VM starts; runs under any Python 3.10 by itself, without the rest of vmreplica.

``hook_text`` puts a few lines of shell before it, and the whole becomes /etc/libvirt/hooks/qemu.d/vmreplica. libvirt
holds the VM's lock meanwhile: nothing here, and nothing that the agent does for an answer, may call libvirt.
"""

import contextlib
import http.client
import json
import socket
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

POLICY = "{urn:vmreplica:policy:1}policy"
#: States of a replica held here in which the VM itself has no business on this host.
HELD = {"waiting-for-initial", "replicating", "paused", "reversing", "cancelling-failover"}
#: Seconds in which an agent that is just being started may appear.
PATIENCE = 4.0
#: Seconds for its answer; it gives the replica four.
LIMIT = 8.0
#: Seconds for which a migration that was announced may begin.
ARRIVES_WITHIN = 300.0


class Agent(http.client.HTTPConnection):
    """The agent's API on its unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self.path = path

    def connect(self) -> None:
        """Connect, waiting a moment for an agent that is not there yet."""
        until = time.monotonic() + PATIENCE
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            try:
                self.sock.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                self.sock.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            else:
                return


class Start:
    """One VM that is about to start here."""

    def __init__(self, fences: str, store: str, agent: str, name: str, document: bytes) -> None:
        domain = ET.fromstring(document)  # noqa: S314 - libvirt wrote it
        self.name = name
        self.vm = domain.findtext("uuid") or ""
        self.policy = domain.findtext(f"metadata/{POLICY}")
        self.agent = agent
        self.fences = Path(fences)
        self.replica = Path(store) / self.vm / "replica.json"
        self.sure = f"; if you know that it runs nowhere else: vmreplica start {name} --i-am-sure"

    def announce(self) -> None:
        """Take note that it runs on another host and moves here: its start, which follows at once, is none."""
        mark = json.dumps({"until": time.time() + ARRIVES_WITHIN})
        with contextlib.suppress(OSError):
            (self.fences / f"{self.vm}.incoming").write_text(mark)

    def refusal(self) -> str | None:
        """Say why it must not start; None when it may."""
        marks = [self.fences / f"{self.vm}.{end}" for end in ("permit", "incoming")]
        if any(used(mark) for mark in marks):
            return None
        fence = read(self.fences / f"{self.vm}.json")
        if self.policy is None:
            return self.without_policy(fence)
        if fence is not None and not fence.get("ask"):
            return str(fence.get("reason", f"its fence in {self.fences} cannot be read{self.sure}"))
        return self.ask(self.policy, fence)

    def without_policy(self, fence: dict[str, Any] | None) -> str | None:
        """Judge a VM that is not protected from here.

        Our own copy of a replica has no policy, so the replica's record is what counts, if there is one.
        """
        record = read(self.replica)
        if record is None:
            return None if fence is None else f"{fence.get('reason', 'its fence cannot be read')}{self.sure}"
        if record.get("state") not in HELD:
            return None
        text = "this host holds its replica and takes points from another host; `vmreplica failover` starts that"
        return text + self.sure

    def ask(self, policy: str, fence: dict[str, Any] | None) -> str | None:
        """Ask the agent, who asks the replica."""
        agent = Agent(self.agent)
        try:
            agent.request("POST", f"/v1/starts/{self.vm}", json.dumps({"name": self.name, "policy": policy}))
            said = json.loads(agent.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            known = "" if fence is None else f"{fence.get('reason')}. "
            why = f"the agent of this host cannot be asked ({type(error).__name__}: {error})"
            return f"{known}{why}: systemctl start vmreplica, then try again{self.sure}"
        finally:
            agent.close()
        if said.get("allowed") is True:
            return None
        return str(said.get("reason") or f"{said.get('message', 'the agent refuses')}{self.sure}")


def used(path: Path) -> bool:
    """Use a mark up; tell whether it was there and still good."""
    mark = read(path)
    if mark is None:
        return False
    try:
        path.unlink()
    except OSError:
        return False
    return bool(mark.get("until", 0) > time.time())


def read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; empty when it cannot be read, None when there is no file."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main(argv: list[str]) -> int:
    """Decide about one event; 0 lets it happen.

    Args:
        argv: directory of the fences, the store, the agent's socket, then libvirt's: name, operation, and so on.
    """
    fences, store, agent, name, operation = argv[:5]
    start = Start(fences, store, agent, name, sys.stdin.buffer.read())
    if operation == "migrate":
        start.announce()
        return 0
    why = start.refusal()
    if why is None:
        return 0
    sys.stderr.write(f"vmreplica does not let {name} start: {why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

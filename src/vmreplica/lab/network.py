"""Links between the lab's hosts, through a middle namespace that nobody else sees.

::

    host a                  middle                    host b
    [to-b] ==veth== [a-b]--(bridge or relay)--[b-a] ==veth== [to-a]

A cut takes the bridge down: both hosts keep their carrier and their neighbour's address, frames just vanish. A host
that crashes takes only its own pair of interfaces with it, so the others see silence, as after a power cut.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from vmreplica.lab import relay
from vmreplica.lab.commands import run
from vmreplica.lab.layout import HostLayout
from vmreplica.lab.namespace import Namespace, is_alive
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Internal

_RELAY_LIMIT: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """The link between two hosts.

    Args:
        middle: the namespace in between.
        one: a host.
        other: another host.
    """

    middle: Namespace
    one: HostLayout
    other: HostLayout

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"br-{self.one.name}-{self.other.name}"

    @property
    def ports(self) -> tuple[str, str]:
        """The two interfaces in the middle."""
        return _port(self.one, self.other), _port(self.other, self.one)

    def create(self) -> None:
        """Make the bridge in the middle; the hosts' ends come with ``attach``."""
        self.middle.ip_batch(
            f"link add {self.bridge} type bridge stp_state 0 forward_delay 0",
            f"link set {self.bridge} up",
        )

    def attach(self, host: HostLayout) -> None:
        """Give a freshly started host its end of the link."""
        peer = self.other if host == self.one else self.one
        inside = Namespace(host.lab, host.name)
        near, port = f"to-{peer.name}", _port(host, peer)
        # After a crash the kernel takes its time to remove the dead host's end, and ours with it.
        run(self.middle.enter(["ip", "link", "delete", port]), check=False)
        self.middle.ip_batch(
            f"link add {port} type veth peer name {near} netns {inside.pid}",
            f"link set {port} master {self.bridge} up",
        )
        inside.ip_batch(
            f"link set {near} address {_mac(host, peer)} up",
            f"address add {host.address}/32 peer {peer.address}/32 dev {near}",
            f"neighbour replace {peer.address} lladdr {_mac(peer, host)} dev {near} nud permanent",
        )

    def cut(self) -> None:
        """Drop everything in both directions, silently."""
        self._stop_relay()
        self.middle.ip_batch(f"link set {self.bridge} down")

    def heal(self) -> None:
        """Forward everything at full speed."""
        self._stop_relay()
        self.middle.ip_batch(
            *(f"link set {port} master {self.bridge} up" for port in self._present()), f"link set {self.bridge} up"
        )

    def slow(self, mbit: float, ms: float) -> None:
        """Forward through a relay that holds frames back.

        Args:
            mbit: bandwidth of each direction in 10^6 bits per second.
            ms: delay of each direction in milliseconds.

        Raises:
            Internal: the relay does not start (code ``lab-relay-failed``).
        """
        self._stop_relay()
        self.middle.ip_batch(*(f"link set {port} nomaster up" for port in self.ports))
        argv = [sys.executable, "-I", relay.__file__, *self.ports, str(mbit), str(ms), str(self._relay_pid_file)]
        with self._relay_log.open("w") as said:
            subprocess.run(
                ["setsid", "--fork", *self.middle.enter(argv)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=True,
            )
        if not until(lambda: self._relay_pid() is not None, _RELAY_LIMIT):
            raise Internal("lab-relay-failed", f"the relay does not start: {self._relay_log.read_text().strip()}")

    @property
    def _relay_pid_file(self) -> Path:
        return self.middle.lab / "keepers" / f"relay-{self.one.name}-{self.other.name}.pid"

    @property
    def _relay_log(self) -> Path:
        return self._relay_pid_file.with_suffix(".log")

    def _present(self) -> list[str]:
        shown = run(self.middle.enter(["ip", "-br", "link"])).stdout
        names = {line.split("@")[0].split()[0] for line in shown.splitlines() if line}
        return [port for port in self.ports if port in names]

    def _relay_pid(self) -> int | None:
        """Find the relay: its pid file holds its number inside the middle's namespaces."""
        try:
            wanted = self._relay_pid_file.read_text().strip()
        except OSError:
            return None
        for pid in self.middle.processes():
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{pid}/status").read_text()
                if status.split("NSpid:")[1].splitlines()[0].split()[-1] == wanted:
                    return pid
        return None

    def _stop_relay(self) -> None:
        pid = self._relay_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            until(lambda: not is_alive(pid), _RELAY_LIMIT)
        self._relay_pid_file.unlink(missing_ok=True)


def _port(host: HostLayout, peer: HostLayout) -> str:
    return f"{host.name}-{peer.name}"


def _mac(host: HostLayout, peer: HostLayout) -> str:
    return f"02:00:00:00:{host.number:02x}:{peer.number:02x}"

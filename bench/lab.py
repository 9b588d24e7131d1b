"""The lab's hosts as the bench sees them: two hosts, paired, with an agent each."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.backup import disks
from bench.hosts import PathLike, sent_bytes, virsh
from vmreplica.lab import Guest, GuestSpec, Lab
from vmreplica.lab import Host as LabHost

GiB = 1 << 30
#: Seconds for the layer of a failover to be committed into the disk.
_COMMITTED = 120.0


class BenchHost:
    """A host of the lab."""

    def __init__(self, host: LabHost) -> None:
        self.lab_host = host
        self.name = host.name
        self.address = host.address
        self.libvirt_uri = host.layout.uri
        self.scratch = host.layout.dir / "bench"
        self.scratch.mkdir()

    def argv(self, *command: PathLike) -> list[str]:
        """Enter network and mounts only: a command in a process namespace of its own could not be measured."""
        keeper = str(self.lab_host.namespace.pid)
        return ["nsenter", "-t", keeper, "-n", "-m", "--", *(str(part) for part in command)]

    def vmreplica(self, *arguments: str) -> dict[str, Any]:
        """Run the product's command line and read its JSON."""
        done = self.lab_host.vmreplica(*arguments, "--json", timeout=1800, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"vmreplica {' '.join(arguments)} on {self.name}: {done.stdout}{done.stderr}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def network_table(self) -> str:
        """Give /proc/net/dev as it is on this host."""
        return Path(f"/proc/{self.lab_host.namespace.pid}/net/dev").read_text()

    def agent_pid(self) -> int:
        """Tell the agent's process id on this machine."""
        pid = self.lab_host.agent_pid
        if pid is None:
            raise RuntimeError(f"the agent of host {self.name} does not run")
        return pid


@dataclass(frozen=True, slots=True)
class Cycled:
    """One cycle, as the history tells it, and the bytes that the primary's interfaces sent meanwhile."""

    seconds: float
    point: str
    wire_bytes: int


@dataclass(frozen=True, slots=True)
class BenchLab:
    """Two paired hosts."""

    primary: BenchHost
    replica: BenchHost
    lab: Lab

    def add_database(self, name: str) -> Guest:
        """Start a guest on the primary in which a database is at work, with its agent."""
        guest = self.primary.lab_host.add_guest(GuestSpec(name=name, idle=True, agent=True, database="sqlite"))
        guest.wait_for("database: is new")
        return guest

    def add_guest(self, name: str, *, content: Path | None = None) -> Path:
        """Start an idle guest on the primary; with content, as its second disk ``vdb``, a copy of that image.

        Returns:
            The image of its last disk.
        """
        host = self.primary.lab_host
        guest = host.add_guest(GuestSpec(name=name, disks=2 if content else 1, idle=True), start=False)
        if content is not None:
            shutil.copyfile(content, guest.images[1])
        guest.start()
        guest.wait_booted()
        return guest.images[-1]

    def cycle(self, guest: str, kind: str) -> Cycled:
        """Run a cycle of a protected guest now.

        Raises:
            RuntimeError: it was not published, or not as this kind of point.
        """
        before = sent_bytes(self.primary)
        self._sync(guest)
        sent = sent_bytes(self.primary) - before
        cycle = self.primary.vmreplica("history", guest, "--limit", "1")["cycles"][0]
        if cycle["outcome"] != "published" or cycle["kind"] != kind:
            raise RuntimeError(f"the cycle was not published as a {kind}: {cycle}")
        return Cycled(float(cycle["seconds"]), cycle["point"], sent)

    def _sync(self, guest: str) -> None:
        """After a planned failover the layer that the guest ran on may still be on its way into the disk."""
        patience = time.monotonic() + _COMMITTED
        while not self._synced(guest):
            if time.monotonic() > patience:
                raise RuntimeError(f"{guest} was busy for {_COMMITTED:.0f} s")
            time.sleep(0.5)

    def _synced(self, guest: str) -> bool:
        try:
            self.primary.vmreplica("sync", guest)
        except RuntimeError as error:
            if "vm-busy" not in str(error):
                raise
            return False
        return True

    def swapped(self) -> "BenchLab":
        """Give the same lab seen from a guest that was moved: its replica is the primary now."""
        return BenchLab(self.replica, self.primary, self.lab)

    def give_up(self, guest: str) -> None:
        """Remove a guest that was moved here, its replication and what the other host holds of it."""
        self.primary.vmreplica("disable", guest, "--delete-copy", "--yes")
        virsh(self.primary, "destroy", guest)
        virsh(self.primary, "undefine", guest, "--checkpoints-metadata")

    @contextmanager
    def primary_lost(self, guest: str) -> Iterator[None]:
        """Lose the primary for a while: it does not answer, and its guest is off; afterwards both are back."""
        self.lab.cut(self.primary.name, self.replica.name)
        virsh(self.primary, "destroy", guest)
        yield
        self.lab.heal(self.primary.name, self.replica.name)
        virsh(self.primary, "start", guest)

    def require_equal(self, guest: str, target: str, point: str) -> None:
        """Refuse a recovery point whose disk is not the primary's: a fast copy that is no copy does not count.

        Raises:
            subprocess.CalledProcessError: they differ.
        """
        (image,) = self.replica.lab_host.layout.store.glob(f"*/points/{point}/{target}.qcow2")
        source = disks(self.primary, guest)[target]
        subprocess.run(["qemu-img", "compare", "-q", "-U", source, image], check=True)


@contextmanager
def two_hosts() -> Iterator[BenchLab]:
    """Make a lab for one run, and take it down whatever happens."""
    # Not below the working directory: unix sockets want short names. Not in /tmp, which may be memory.
    folder = tempfile.mkdtemp(prefix="vmr-bench-", dir="/var/tmp")
    lab = Lab.up(Path(folder), hosts=2)
    try:
        primary, replica = (BenchHost(host) for host in lab.hosts)
        lab.pair(primary.name, replica.name)
        yield BenchLab(primary, replica, lab)
    finally:
        lab.down()

"""A lab: hosts, the links between them, and the one file that says so."""

import contextlib
import datetime as dt
import fcntl
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from vmreplica.fsio import publish_bytes
from vmreplica.lab.commands import require_root, require_tools
from vmreplica.lab.host import Host
from vmreplica.lab.layout import HOST_NAMES, HostLayout, default_dir, require_short
from vmreplica.lab.namespace import Namespace, keepers_of, kill_keepers
from vmreplica.lab.network import Link
from vmreplica.lab.probe import domain_type
from vmreplica.model.errors import BadRequest, Conflict, Corrupt, NotFound, Refused
from vmreplica.model.shape import Shape

_FILE: Final = "lab.json"
_MIDDLE: Final = "middle"


class LabFile(Shape):
    """``lab.json``: what the lab is. Whether it runs is seen from its processes."""

    version: Literal[1] = 1
    created: dt.datetime
    hosts: tuple[str, ...]
    domain_type: Literal["kvm", "qemu"]
    agents: bool


class HostStatus(Shape):
    """One host, for scripts."""

    name: str
    up: bool
    libvirt_uri: str
    agent_socket: str
    agent_pid: int | None
    address: str
    state_dir: str
    store: str
    config: str
    guests: tuple[str, ...]


class LabStatus(Shape):
    """The whole lab, for scripts."""

    dir: str
    domain_type: str
    hosts: tuple[HostStatus, ...]


def _silent(_: str) -> None:
    """Show no progress."""


class Lab:
    """A lab on this machine; ``Lab.up`` makes one, ``Lab.open`` finds one.

    Args:
        directory: where it lives.
        file: what it is.
        say: shows a line of progress.
    """

    def __init__(self, directory: Path, file: LabFile, say: Callable[[str], None] = _silent) -> None:
        self.dir = directory
        self.file = file
        self._say = say
        self._middle = Namespace(directory, _MIDDLE)
        layouts = [HostLayout(directory, name) for name in file.hosts]
        self.hosts = tuple(
            Host(layout, [other.dir for other in layouts if other != layout], file.domain_type, say)
            for layout in layouts
        )
        self._links = {
            frozenset((one.name, other.name)): Link(self._middle, one, other)
            for one, other in itertools.combinations(layouts, 2)
        }

    # --- life -------------------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        directory: Path | None = None,
        *,
        hosts: int = 2,
        agents: bool = True,
        say: Callable[[str], None] = _silent,
    ) -> "Lab":
        """Make a lab and start all of it; on failure nothing of it is left.

        Args:
            directory: where it lives, new or empty; default ``$VMREPLICA_LAB`` or ``/var/tmp/vmreplica-lab``.
            hosts: how many; they are called a, b, c...
            agents: start the agents as well.
            say: shows a line of progress.

        Raises:
            Refused: not root, programs missing, or namespaces forbidden.
            Conflict: a lab is there already (code ``lab-exists``).
            BadRequest: the directory or the number of hosts cannot be.
        """
        directory = (directory or default_dir()).absolute()
        require_root()
        require_tools()
        require_short(directory)
        _require_count(hosts)
        _claim(directory)
        say("looking for a working /dev/kvm")
        file = LabFile(
            created=dt.datetime.now(dt.UTC), hosts=tuple(HOST_NAMES[:hosts]), domain_type=domain_type(), agents=agents
        )
        publish_bytes(directory / _FILE, file.model_dump_json(indent=2).encode(), durable=False)
        lab = cls(directory, file, say)
        try:
            lab._start_all()
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def open(cls, directory: Path | None = None, *, say: Callable[[str], None] = _silent) -> "Lab":
        """Find a lab.

        Raises:
            NotFound: there is none (code ``lab-unknown``).
            Corrupt: its file is broken (code ``lab-file-broken``).
        """
        directory = (directory or default_dir()).absolute()
        path = directory / _FILE
        try:
            return cls(directory, LabFile.model_validate_json(path.read_bytes()), say)
        except FileNotFoundError as error:
            raise NotFound(
                "lab-unknown",
                f"there is no lab in {directory}",
                hint="vmreplica lab up, or name its directory with --dir",
            ) from error
        except ValidationError as error:
            raise Corrupt(
                "lab-file-broken", f"{path} is not what `lab up` writes", hint="vmreplica lab down removes the lab"
            ) from error

    def down(self, *, keep: bool = False) -> None:
        """End the lab; with ``keep`` its files stay."""
        Lab.remove(self.dir, keep=keep)

    @staticmethod
    def remove(directory: Path | None = None, *, keep: bool = False) -> bool:
        """End the lab of a directory in whatever condition it is; tell whether there was one.

        Args:
            directory: as for ``up``.
            keep: leave the files.
        """
        require_root()
        directory = (directory or default_dir()).absolute()
        keepers = keepers_of(directory)
        kill_keepers(keepers)
        files = (directory / _FILE).exists() or (directory / "keepers").exists()
        if files and not keep:
            shutil.rmtree(directory)
        return bool(keepers) or files

    # --- hosts and links --------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Find a host.

        Raises:
            NotFound: code ``lab-host-unknown``.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        raise NotFound(
            "lab-host-unknown",
            f"the lab has no host {name}; it has {', '.join(self.file.hosts)}",
            hint="vmreplica lab status",
        )

    def cut(self, one: str, other: str) -> None:
        """Let everything between two hosts vanish silently."""
        with self._locked():
            self._link(one, other).cut()

    def heal(self, one: str, other: str) -> None:
        """Undo a cut or a slow line."""
        with self._locked():
            self._link(one, other).heal()

    def slow(self, one: str, other: str, *, mbit: float = 1000.0, ms: float = 0.0) -> None:
        """Make the line between two hosts slow.

        Args:
            one: a host.
            other: another host.
            mbit: bandwidth of each direction, 10^6 bits per second.
            ms: delay of each direction, milliseconds; a round trip takes twice that.
        """
        if mbit <= 0 or ms < 0:
            raise BadRequest(
                "lab-line-invalid", f"a line has no {mbit} Mbit/s or {ms} ms", hint="vmreplica lab slow --help"
            )
        with self._locked():
            self._link(one, other).slow(mbit, ms)

    def crash(self, name: str) -> None:
        """Cut a host's power: first its lines, so that no farewell gets out, then everything on it at once."""
        host = self.host(name)
        with self._locked():
            for link in self._links_of(name):
                link.cut()
            host.power_off()

    def start(self, name: str) -> None:
        """Boot a crashed host: libvirtd, lines at full speed, and the agent if the lab has agents. Guests stay off."""
        host = self.host(name)
        if host.up:
            raise Conflict("lab-host-up", f"host {name} runs already", hint="vmreplica lab status")
        try:
            with self._locked():
                self._boot(host)
                for link in self._links_of(name):
                    link.heal()
        except BaseException:
            host.power_off()
            raise
        if self.file.agents:
            host.start_agent()

    def pair(self, one: str, other: str) -> None:
        """Pair two hosts' agents, as a person does: an invitation from one, joined on the other."""
        token = self.host(one).ask("peer", "invite")["token"]
        self.host(other).ask("peer", "join", token)

    def restore(self) -> None:
        """Bring a maltreated lab back: all hosts up, all lines whole, all agents running if the lab has agents."""
        for host in self.hosts:
            if not host.up:
                self.start(host.name)
        for one, other in itertools.combinations(self.file.hosts, 2):
            self.heal(one, other)
        for host in self.hosts if self.file.agents else ():
            host.start_agent()

    def status(self) -> LabStatus:
        """Tell what a script needs to know."""
        return LabStatus(
            dir=str(self.dir), domain_type=self.file.domain_type, hosts=tuple(_host_status(host) for host in self.hosts)
        )

    # --- inside -----------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        self._middle.start(binds={}, hidden=[], read_only={})
        for link in self._links.values():
            link.create()
        for host in self.hosts:
            host.layout.dir.mkdir()
        for host in self.hosts:
            self._say(f"starting host {host.name} at {host.address}")
            self._boot(host)
        for host in self.hosts if self.file.agents else ():
            self._say(f"starting the agent of host {host.name}")
            host.start_agent()

    def _boot(self, host: Host) -> None:
        host.power_on()
        for link in self._links_of(host.name):
            link.attach(host.layout)
        host.start_libvirtd()

    def _link(self, one: str, other: str) -> Link:
        for name in (one, other):
            self.host(name)
        try:
            return self._links[frozenset((one, other))]
        except KeyError as error:
            raise BadRequest("lab-line-invalid", "a host has no line to itself", hint="name two hosts") from error

    def _links_of(self, name: str) -> list[Link]:
        return [link for names, link in self._links.items() if name in names]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one change of lines or hosts happen at a time, also among several commands."""
        with (self.dir / _FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _host_status(host: Host) -> HostStatus:
    layout = host.layout
    return HostStatus(
        name=host.name,
        up=host.up,
        libvirt_uri=layout.uri,
        agent_socket=str(layout.agent_socket),
        agent_pid=host.agent_pid,
        address=host.address,
        state_dir=str(layout.state_dir),
        store=str(layout.store),
        config=str(layout.agent_config),
        guests=tuple(host.guest_names()) if host.up else (),
    )


def _require_count(hosts: int) -> None:
    if not 1 <= hosts <= len(HOST_NAMES):
        raise BadRequest("lab-hosts-invalid", f"a lab has 1 to {len(HOST_NAMES)} hosts, not {hosts}")


def _claim(directory: Path) -> None:
    """Make the directory, or refuse one that holds anything: ``down`` removes it whole."""
    if (directory / _FILE).exists() or keepers_of(directory):
        raise Conflict(
            "lab-exists", f"there is a lab in {directory} already", hint=f"vmreplica lab down --dir {directory}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise Refused(
            "lab-dir-not-empty", f"{directory} is not empty, and `lab down` would remove it whole",
            hint="name a new directory with --dir",
        )  # fmt: skip
    directory.chmod(0o711)

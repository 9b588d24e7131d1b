"""One host of the lab: namespaces with a private libvirtd and an agent in them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from vmreplica.agent import hooks
from vmreplica.lab.commands import run, tool_environment
from vmreplica.lab.guest import Guest, GuestSpec, domain_xml, last_announced, make_images, wait_for_text
from vmreplica.lab.layout import (
    LIBVIRTD_CONF,
    NETWORKS,
    QEMU_CONF,
    HostLayout,
    agent_toml,
    network_xml,
)
from vmreplica.lab.namespace import Namespace, is_alive
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Conflict, NotFound, TimedOut, Unreachable

_START_LIMIT: Final = 30.0
_STOP_LIMIT: Final = 30.0
_KVM: Final = Path("/dev/kvm")
#: Runs the product with the very interpreter and package that the lab runs with.
VMREPLICA: Final = (sys.executable, "-m", "vmreplica.cli")


class Host:
    """A host of a running lab; ``Lab.host`` gives it.

    Args:
        layout: its paths and address.
        others: directories of the other hosts, which it must not see.
        domain_type: what its guests run under: ``kvm`` or ``qemu``.
        say: shows a line of progress.
    """

    def __init__(
        self, layout: HostLayout, others: Sequence[Path], domain_type: str, say: Callable[[str], None]
    ) -> None:
        self.layout = layout
        self.name = layout.name
        self.address = layout.address
        self.domain_type = domain_type
        self.namespace = Namespace(layout.lab, layout.name)
        self._others = others
        self._say = say

    # --- life -------------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether the host is switched on."""
        return self.namespace.find_pid() is not None

    def power_on(self) -> None:
        """Boot: namespaces and an empty /run; disks are as they were."""
        layout = self.layout
        _empty(layout.run)
        for directory in (
            layout.images,
            layout.state_dir,
            layout.store,
            layout.runtime_dir,
            layout.seeds,
            layout.agent_socket.parent,
        ):
            directory.mkdir(parents=True, exist_ok=True)
        for directory in map(Path, layout.binds):
            directory.mkdir(parents=True, exist_ok=True)
        etc = layout.dir / "libvirt" / "etc"
        (etc / "qemu.conf").write_text(QEMU_CONF)
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        if not layout.agent_config.exists():
            layout.agent_config.write_text(agent_toml(layout))
        hooks.install(layout.agent_config, layout.hooks)
        self.namespace.start(
            binds=layout.binds, hidden=[str(path) for path in self._others], read_only=self._without_kvm()
        )
        self.namespace.ip_batch(
            f"address add {layout.address}/32 dev lo",
            *(line for name in NETWORKS for line in (f"link add br-{name} type bridge", f"link set br-{name} up")),
        )

    def power_off(self) -> None:
        """End everything on the host at the same instant."""
        self.namespace.kill()

    def start_libvirtd(self) -> None:
        """Start libvirtd and the host's networks.

        Raises:
            TimedOut: it does not answer (code ``lab-libvirtd-silent``).
        """
        self.exec(["libvirtd", "--daemon"])
        if not until(lambda: _answers(self.layout.libvirt_socket), _START_LIMIT):
            raise TimedOut(
                "lab-libvirtd-silent", f"libvirtd of host {self.name} does not answer", hint=self._libvirtd_log()
            )
        known = self.virsh("net-list", "--all", "--name").stdout.split()
        for name in NETWORKS:
            if name not in known:
                self.exec(["virsh", "-c", self.layout.uri, "net-define", "/dev/stdin"], stdin=network_xml(name))
                self.virsh("net-autostart", name)
                self.virsh("net-start", name)

    def stop_libvirtd(self, *, hard: bool = False) -> None:
        """Stop libvirtd; guests go on running.

        Args:
            hard: with SIGKILL.
        """
        self._end(self._find(_is_libvirtd), signal.SIGKILL if hard else signal.SIGTERM)

    def restart_libvirtd(self, *, hard: bool = False) -> None:
        """Stop libvirtd and start it again; guests go on running."""
        self.stop_libvirtd(hard=hard)
        self.start_libvirtd()

    # --- commands ---------------------------------------------------------------------------------------------

    def exec(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host.

        Raises:
            HypervisorError: it failed (code ``lab-command-failed``), unless ``check`` is false.
            TimedOut: it took longer than ``timeout`` seconds.
            Conflict: the host is down (code ``lab-host-down``).
        """
        return run(self.namespace.enter(argv), timeout=timeout, check=check, stdin=stdin)

    def terminal_argv(self, argv: Sequence[str]) -> list[str]:
        """Give the command line that runs a command on the host; ``vmreplica`` is this very installation."""
        inside = [*VMREPLICA, *argv[1:]] if argv[0] == "vmreplica" else list(argv)
        return self.namespace.enter(inside)

    def virsh(self, *args: str, timeout: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run virsh on the host."""
        return self.exec(["virsh", "-q", "-c", self.layout.uri, *args], timeout=timeout, check=check)

    def vmreplica(self, *args: str, timeout: float = 120.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the product's command line on the host; it talks to the host's agent."""
        return self.exec([*VMREPLICA, *args], timeout=timeout, check=check)

    def ask(self, *args: str, timeout: float = 120.0) -> dict[str, Any]:
        """Run the product's command line on the host with ``--json`` and give its document.

        Raises:
            HypervisorError: the command failed (code ``lab-command-failed``).
        """
        answer: dict[str, Any] = json.loads(self.vmreplica(*args, "--json", timeout=timeout).stdout)
        return answer

    def background(self, argv: Sequence[str], log: Path) -> None:
        """Start a command on the host that outlives the caller; what it prints goes to a file."""
        with log.open("ab") as said:
            subprocess.run(
                ["setsid", "--fork", *self.namespace.enter(argv)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=True, env=tool_environment(),
            )  # fmt: skip

    # --- the agent --------------------------------------------------------------------------------------------

    @property
    def agent_pid(self) -> int | None:
        """The agent's process id as seen from outside; None when it does not run."""
        return self._find(self._runs_our_agent)

    def start_agent(self, argv: Sequence[str] | None = None) -> None:
        """Start the agent and wait until its socket answers; nothing to do when it runs.

        Args:
            argv: what to run in place of ``vmreplica agent``; ``--config FILE`` is put behind it, by which it is found.

        Raises:
            Unreachable: it ended or stays silent; the hint ends its log (code ``lab-agent-silent``).
        """
        if self.agent_pid is None:
            self.layout.agent_socket.unlink(missing_ok=True)
            program = argv or [*VMREPLICA, "agent"]
            self.background([*program, "--config", str(self.layout.agent_config)], self.layout.agent_log)
        answers = until(lambda: _answers(self.layout.agent_socket), _START_LIMIT, while_=self._agent_may_come)
        if not answers:
            tail = self.layout.agent_log.read_text(errors="replace")[-2000:]
            raise Unreachable(
                "lab-agent-silent",
                f"the agent of host {self.name} does not answer: {tail}",
                hint=str(self.layout.agent_log),
            )

    def stop_agent(self) -> None:
        """Ask the agent to end and wait for it."""
        self._end(self.agent_pid, signal.SIGTERM)

    def kill_agent(self) -> None:
        """End the agent with SIGKILL."""
        self._end(self.agent_pid, signal.SIGKILL)

    # --- guests -----------------------------------------------------------------------------------------------

    def add_guest(self, spec: GuestSpec, *, start: bool = True) -> Guest:
        """Make a guest, define it and, if wanted, start it. Does not wait for it to boot.

        Raises:
            BadRequest: the guest cannot be like that (code ``lab-guest-invalid``).
            Conflict: there is one of that name (code ``lab-guest-exists``).
        """
        spec.check()
        if spec.name in self.guest_names():
            raise Conflict(
                "lab-guest-exists", f"host {self.name} has a guest {spec.name} already", hint="choose another name"
            )
        images = make_images(self.layout.images, spec, self._say)
        guest = Guest(self, spec.name, images)
        guest.console.unlink(missing_ok=True)
        xml = domain_xml(spec, images, guest.console, self.domain_type)
        self.exec(["virsh", "-q", "-c", self.layout.uri, "define", "/dev/stdin"], stdin=xml)
        if start:
            guest.start()
        return guest

    def guest(self, name: str) -> Guest:
        """Find a guest that was added to this host.

        Raises:
            NotFound: code ``lab-guest-unknown``.
        """
        images = tuple(sorted(self.layout.images.glob(f"{name}-vd?.qcow2")))
        if not images:
            raise NotFound(
                "lab-guest-unknown", f"host {self.name} has no guest {name}",
                hint=f"vmreplica lab exec {self.name} -- virsh list --all",
            )  # fmt: skip
        return Guest(self, name, images)

    def guest_names(self) -> list[str]:
        """Name all domains of the host's libvirt."""
        return self.virsh("list", "--all", "--name").stdout.split()

    def disk_paths(self, domain: str) -> tuple[Path, ...]:
        """Tell the image files of any domain, in order; also of one that a failover started here."""
        rows = [line.split(maxsplit=3) for line in self.virsh("domblklist", domain, "--details").stdout.splitlines()]
        return tuple(Path(row[3]) for row in sorted(rows, key=lambda row: row[2]) if row[:2] == ["file", "disk"])

    def watch_console(self, domain: str, pattern: str, *, timeout: float = 240.0) -> str:
        """Wait until any running domain says something on its serial line; give what it said until then.

        A domain that a failover started has no console log: this reads the line itself, from now on.

        Raises:
            TimedOut: code ``lab-guest-silent``.
        """
        terminal = self.virsh("ttyconsole", domain).stdout.strip()
        heard = bytearray()
        fd = os.open(terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            wait_for_text(lambda: _listen(fd, heard), pattern, timeout=timeout, who=domain)
        finally:
            os.close(fd)
        return heard.decode(errors="replace")

    def wait_domain_alive(self, domain: str, *, timeout: float = 240.0) -> int:
        """Wait for a heartbeat of any running domain; tell the record it announces."""
        said = self.watch_console(domain, r"lab-guest: record \d+ \(", timeout=timeout)
        return last_announced(said) or 0

    # --- inside -----------------------------------------------------------------------------------------------

    def _without_kvm(self) -> dict[str, str]:
        """Put a file that nobody can write to before /dev/kvm where it does not really work: libvirt would use it."""
        if self.domain_type == "kvm" or not _KVM.exists():
            return {}
        nothing = self.layout.dir / "no-kvm"
        nothing.touch()
        return {str(nothing): str(_KVM)}

    def _find(self, wanted: Callable[[list[str]], bool]) -> int | None:
        """Find the process on the host whose command line is the wanted one."""
        for pid in self.namespace.processes() if self.up else ():
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if wanted(argv) and is_alive(pid):
                return pid
        return None

    def _runs_our_agent(self, argv: list[str]) -> bool:
        return argv[-3:-1] == ["--config", str(self.layout.agent_config)]

    def _end(self, pid: int | None, how: signal.Signals) -> None:
        if pid is None:
            return
        os.kill(pid, how)
        if not until(lambda: not is_alive(pid), _STOP_LIMIT):
            raise TimedOut("lab-process-stays", f"process {pid} of host {self.name} does not end after {how.name}")

    def _agent_may_come(self) -> bool:
        return self.agent_pid is not None

    def _libvirtd_log(self) -> str:
        log = self.layout.libvirtd_log
        return log.read_text(errors="replace")[-1000:] if log.exists() else ""


def _is_libvirtd(argv: list[str]) -> bool:
    return argv[0].rpartition("/")[2] == "libvirtd"


def _empty(directory: Path) -> None:
    run(["rm", "-rf", "--", str(directory)])
    directory.mkdir(parents=True)


def _listen(fd: int, heard: bytearray) -> str:
    with contextlib.suppress(BlockingIOError):
        heard += os.read(fd, 65536)
    return heard.decode(errors="replace")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True

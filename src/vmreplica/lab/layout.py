"""Where things lie in a lab, and what its configuration files say. Pure: touches nothing."""

import dataclasses
import os
from pathlib import Path
from typing import Final

from vmreplica.model.errors import BadRequest

#: Hosts are called a, b, c...
HOST_NAMES: Final = "abcdefgh"
#: RFC 2544's block for benchmarks. The lab's namespaces have no way out, so every lab can use the same addresses.
_BLOCK: Final = "198.18.0"
AGENT_PORT: Final = 7432
#: Networks that every host offers to its guests; each is a bridge of its own without a way out.
NETWORKS: Final = ("lan", "isolated")
#: Linux refuses longer unix socket paths; libvirt's and ours below a host's directory need up to this many.
_SOCKET_PATH_MAX: Final = 107
_LONGEST_SOCKET: Final = "/a/run/libvirt/libvirt-admin-sock"


def default_dir() -> Path:
    """Tell the lab's directory when none is named."""
    return Path(os.environ.get("VMREPLICA_LAB") or "/var/tmp/vmreplica-lab")  # noqa: S108 - root's own, kept over a reboot


def require_short(directory: Path) -> None:
    """Refuse a directory whose sockets would have too long names.

    Raises:
        BadRequest: code ``lab-dir-too-long``.
    """
    if len(str(directory)) + len(_LONGEST_SOCKET) > _SOCKET_PATH_MAX:
        raise BadRequest(
            "lab-dir-too-long",
            f"{directory} is too long: unix sockets below it may have {_SOCKET_PATH_MAX} characters at most",
            hint="name a shorter directory with --dir",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class HostLayout:
    """Paths, address and names of one host. Every path is the same inside the host and outside."""

    lab: Path
    name: str

    @property
    def number(self) -> int:
        """Counted from 1."""
        return HOST_NAMES.index(self.name) + 1

    @property
    def address(self) -> str:
        """The host's IPv4 address."""
        return f"{_BLOCK}.{self.number}"

    @property
    def dir(self) -> Path:
        """All that the host keeps on disk; hidden from the other hosts."""
        return self.lab / self.name

    @property
    def run(self) -> Path:
        """The host's /run: gone after a crash."""
        return self.dir / "run"

    @property
    def libvirt_socket(self) -> Path:
        """The socket of libvirtd."""
        return self.run / "libvirt" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """How libvirt is reached, from inside and outside."""
        return f"qemu:///system?socket={self.libvirt_socket}"

    @property
    def agent_socket(self) -> Path:
        """The agent's socket as seen from outside; inside it is the usual one below /run too."""
        return self.run / "vmreplica" / "agent.sock"

    @property
    def agent_config(self) -> Path:
        """The agent's configuration."""
        return self.dir / "agent.toml"

    @property
    def agent_log(self) -> Path:
        """What the agent prints."""
        return self.dir / "agent.log"

    @property
    def state_dir(self) -> Path:
        """The agent's state."""
        return self.dir / "state"

    @property
    def store(self) -> Path:
        """The replica store."""
        return self.dir / "store"

    @property
    def runtime_dir(self) -> Path:
        """NBD sockets and scratch files of backup jobs; outlives a crash, as on a real disk."""
        return self.dir / "runtime"

    @property
    def images(self) -> Path:
        """Images and console logs of the host's own guests."""
        return self.dir / "images"

    @property
    def seeds(self) -> Path:
        """Copies that a first point may be made from."""
        return self.dir / "seeds"

    @property
    def binds(self) -> dict[str, str]:
        """Directories of the host that lie over the machine's."""
        return {
            str(self.run): "/run",
            str(self.dir / "libvirt" / "etc"): "/etc/libvirt",
            str(self.dir / "libvirt" / "lib"): "/var/lib/libvirt",
            str(self.dir / "libvirt" / "cache"): "/var/cache/libvirt",
            str(self.dir / "libvirt" / "log"): "/var/log/libvirt",
        }

    @property
    def hooks(self) -> Path:
        """Programs that libvirtd runs before a VM starts."""
        return self.dir / "libvirt" / "etc" / "hooks" / "qemu.d"

    @property
    def libvirtd_log(self) -> Path:
        """What libvirtd complains about."""
        return self.dir / "libvirt" / "log" / "libvirtd.log"


QEMU_CONF: Final = """\
# A lab host has no security modules, no cgroups, no systemd; qemu runs as root, inside the host's namespaces.
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""

LIBVIRTD_CONF: Final = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""


def network_xml(name: str) -> str:
    """Describe a libvirt network over a bridge of ours, which needs neither dnsmasq nor a packet filter."""
    return f"<network><name>{name}</name><forward mode='bridge'/><bridge name='br-{name}'/></network>"


def agent_toml(host: HostLayout) -> str:
    """Write the agent's configuration."""
    return f"""\
[agent]
name = "{host.name}"
state_dir = "{host.state_dir}"
store = "{host.store}"
socket = "{host.agent_socket}"
listen = "{host.address}:{AGENT_PORT}"
advertise = ["{host.address}:{AGENT_PORT}"]
libvirt_uri = "{host.uri}"
runtime_dir = "{host.runtime_dir}"

[replica]
base_devices = ["/dev/loop*"]
seed_dirs = ["{host.seeds}"]
seed_devices = ["/dev/loop*"]

[log]
format = "json"
level = "info"
"""

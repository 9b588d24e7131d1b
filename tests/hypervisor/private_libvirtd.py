"""A libvirtd of the tests' own, in a mount namespace: it sees no domain of this machine, and none of them sees it."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

_PLACES: Final = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
_QEMU_CONF: Final = """\
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
_LIBVIRTD_CONF: Final = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
_MOUNT_AND_RUN: Final = """\
set -e
for place in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
  mkdir -p "${place#*:}"
  mount --bind "$0/${place%%:*}" "${place#*:}"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf
"""


class PrivateLibvirtd:
    """One libvirtd with its guests; ``home`` is short enough for unix sockets below it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="vmr-libvirt-"))
        self.home.chmod(0o755)
        for place in _PLACES:
            (self.home / place).mkdir()
        (self.home / "etc/qemu.conf").write_text(_QEMU_CONF)
        (self.home / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF)
        self.uri = f"qemu:///system?socket={self.home}/run/libvirt-sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run the daemon and wait until it answers; guests that still run are found again."""
        with (self.home / "libvirtd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT_AND_RUN, str(self.home)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.home / "libvirtd.log").read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """End the daemon at once, as a crash would; its guests run on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, *, frozen: bool) -> None:
        """Stop the daemon's clock or let it go on: a libvirtd that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def virsh(self, *arguments: str) -> str:
        """Run virsh here and return what it prints."""
        done = subprocess.run(
            ["virsh", "--connect", self.uri, *arguments], check=False, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"virsh {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def close(self) -> None:
        """End the daemon and every guest, and leave nothing on the disk."""
        self.kill()
        for pid_file in (self.home / "run/qemu").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def _answers(self) -> bool:
        command = ["virsh", "--connect", self.uri, "uri"]
        return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0

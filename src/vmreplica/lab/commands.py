"""Running the machine's tools: always with a time limit, and with an error that names the command."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

from vmreplica.model.errors import HypervisorError, Refused, TimedOut

#: Tool to Debian and Ubuntu package.
TOOLS: Final[dict[str, str]] = {
    "busybox": "busybox-static",
    "ip": "iproute2",
    "libvirtd": "libvirt-daemon-system",
    "mcopy": "mtools",
    "mformat": "mtools",
    "modprobe": "kmod",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "syslinux": "syslinux",
    "unshare": "util-linux",
    "virsh": "libvirt-clients",
}
_ADMIN_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path() -> str:
    """Tell PATH with the administrator's directories, which an ordinary shell's PATH may lack."""
    return f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}"


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    check: bool = True,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a tool and collect what it prints.

    Args:
        argv: program and arguments.
        timeout: seconds.
        check: raise when the program fails.
        stdin: text for its standard input; otherwise it is empty.

    Raises:
        TimedOut: it took longer (code ``lab-command-timeout``).
        HypervisorError: it failed (code ``lab-command-failed``).
    """
    try:
        done = _collect(argv, stdin or "", timeout)
    except subprocess.TimeoutExpired as error:
        raise TimedOut("lab-command-timeout", f"{_spell(argv)} took longer than {timeout:.0f} s") from error
    except FileNotFoundError as error:
        raise Refused("lab-needs-tools", f"{argv[0]} is not installed") from error
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing")[-2000:]
        raise HypervisorError(
            "lab-command-failed", f"{_spell(argv)} failed with {done.returncode}: {said}", kind="operator"
        )
    return done


def tool_environment() -> dict[str, str]:
    """Give the environment for the machine's tools."""
    return {**os.environ, "PATH": search_path()}


def require_root() -> None:
    """Refuse to go on without the rights to make namespaces.

    Raises:
        Refused: not root (code ``lab-needs-root``).
    """
    if os.geteuid() != 0:
        raise Refused(
            "lab-needs-root",
            "the lab makes network and mount namespaces, which needs root",
            hint="run the same command with sudo",
        )


def require_tools() -> None:
    """Refuse to go on when programs are missing.

    Raises:
        Refused: names the packages to install (code ``lab-needs-tools``).
    """
    missing = [tool for tool in TOOLS if shutil.which(tool, path=search_path()) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise Refused(
            "lab-needs-tools",
            f"the lab needs programs that are not installed: {', '.join(missing)}",
            hint=f"apt-get install {packages}",
        )


def _collect(argv: Sequence[str], stdin: str, timeout: float) -> subprocess.CompletedProcess[str]:
    # A group of its own, so that a command given up dies with the children it has in a host's namespaces.
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=tool_environment(), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(stdin, timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _spell(argv: Sequence[str]) -> str:
    return " ".join(argv)[:300]

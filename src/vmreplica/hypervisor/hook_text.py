"""The text of libvirt's hook for one host, and what became of it where it is installed."""

import os
import re
import stat
from pathlib import Path
from typing import Final, Literal

from vmreplica.fsio import publish_bytes
from vmreplica.hypervisor import qemu_hook
from vmreplica.model.errors import BadRequest, NotFound, Refused

#: libvirt (6.5 and newer) runs every program in there, after a hook of the host's own that is called just ``qemu``.
HOOKS: Final = Path("/etc/libvirt/hooks/qemu.d")
NAME: Final = "vmreplica"

HookFate = Literal["installed", "missing", "not-executable", "differs"]

#: Both a shell script and, seen by Python, one string. Most of what libvirt tells is done here, at once: a host's other
#: VMs depend on nothing but a shell. To fail where libvirt reconnects to its VMs would kill them.
_HEAD: Final = """\
#!/bin/sh
# Asks vmreplica before a protected VM starts. Made by `vmreplica install-hook`: changes are lost.
''''true
case "$2 $3" in "prepare begin" | "migrate begin") ;; *) exit 0 ;; esac
fences="{fences}" store="{store}" socket="{socket}" python=/usr/bin/python3
xml=$(cat)
vm=${{xml#*<uuid>}} vm=${{vm%%</uuid>*}}
case $xml in
  *urn:vmreplica:policy:1*) ;;
  *) [ -e "$fences/$vm.json" ] || [ -e "$store/$vm/replica.json" ] || exit 0 ;;
esac
[ -x "$python" ] || {{ echo "vmreplica: $1 is protected, and $python is missing to ask for it" >&2; exit 1; }}
printf %s "$xml" | "$python" -IS "$0" "$fences" "$store" "$socket" "$@"
exit # '''
"""
_UNSUITABLE: Final = re.compile(r"""['"`$\\\x00-\x1f]""")


def hook_text(*, fences: Path, store: Path, socket: Path) -> str:
    """Write the hook for a host.

    Args:
        fences: directory of ``Fence``.
        store: of the replicas.
        socket: of the agent.

    Raises:
        BadRequest: a path that no shell script should carry (``hook-path-unsuitable``).
    """
    for path in (fences, store, socket):
        if _UNSUITABLE.search(str(path)):
            raise BadRequest(
                "hook-path-unsuitable",
                f"{str(path)!r} has characters that libvirt's hook cannot carry",
                hint="choose a path without quotes, backslashes, dollar signs and control characters",
            )
    head = _HEAD.format(fences=fences, store=store, socket=socket)
    return head + Path(qemu_hook.__file__).read_text(encoding="utf-8")


def install_hook(text: str, directory: Path = HOOKS) -> tuple[Path, bool]:
    """Put the hook in place; other hooks are left alone.

    Returns:
        where it is, and whether it was changed.

    Raises:
        NotFound: libvirt's own directory is not there (``libvirt-not-installed``).
        Refused: ``hook-not-writable``.
    """
    path = directory / NAME
    if hook_fate(text, directory) == "installed":
        return path, False
    if not directory.parent.parent.is_dir():
        raise NotFound(
            "libvirt-not-installed",
            f"there is no {directory.parent.parent}: libvirt keeps its configuration elsewhere, or is not installed",
            hint="install libvirt, or name the directory of its hooks: vmreplica install-hook --to DIR",
        )
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        publish_bytes(path, text.encode(), mode=0o755)
        path.chmod(0o755)  # whatever the umask says
    except OSError as error:
        raise Refused(
            "hook-not-writable",
            f"cannot write {path}: {error.strerror}",
            hint="run the command as root: sudo vmreplica ...",
        ) from error
    return path, True


def hook_fate(text: str, directory: Path = HOOKS) -> HookFate:
    """Tell whether just this hook is installed."""
    path = directory / NAME
    try:
        status, found = path.stat(), path.read_bytes()
    except OSError:
        return "missing"
    if not stat.S_IMODE(status.st_mode) & stat.S_IXUSR or not os.access(path, os.X_OK):
        return "not-executable"
    return "installed" if found == text.encode() else "differs"

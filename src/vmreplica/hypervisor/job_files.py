"""The files a backup job needs while it runs: the NBD socket and the scratch images for blocks the guest overwrites."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from vmreplica.fsio import require_free
from vmreplica.hypervisor.backup_xml import RunningBackup
from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import VmId
from vmreplica.model.units import MiB

#: The kernel's limit for the path of a unix socket, less its closing NUL.
_MAX_SOCKET_PATH: Final = 107
_TYPICAL: Final = "nbd/0123456789ab/01234567.vdaabcde"
#: A modest floor: an idle guest needs next to nothing, and the job is short.
_MIN_SCRATCH: Final = 64 * MiB
_BLOCK: Final = 512


class JobFiles:
    """Names, makes and removes the files of our backup jobs below one directory.

    Args:
        runtime_dir: QEMU must be able to pass through it; its path is short enough for unix sockets below it.

    Raises:
        BadRequest: the path is too long (``runtime-dir-too-long``).
    """

    def __init__(self, runtime_dir: Path) -> None:
        if len(os.fsencode(runtime_dir / _TYPICAL)) > _MAX_SOCKET_PATH:
            raise BadRequest(
                "runtime-dir-too-long",
                f"{runtime_dir} is too long for unix sockets in it",
                hint="set agent.runtime_dir to a shorter path such as /run/vmreplica",
            )
        self._sockets = runtime_dir / "nbd"
        self._scratch = runtime_dir / "scratch"

    def socket(self, vm: VmId, checkpoint: str) -> Path:
        """Name the NBD socket of a job."""
        return self._sockets / vm.replace("-", "")[:12] / f"{checkpoint[-8:]}.sock"

    def stopped_socket(self, vm: VmId, checkpoint: str, target: str) -> Path:
        """Name the NBD socket of one disk of a VM that is off: each has a server of its own."""
        return self.socket(vm, checkpoint).with_suffix(f".{target}")

    def scratch(self, vm: VmId, checkpoint: str, target: str) -> Path:
        """Name the scratch image of one disk of a job."""
        return self._scratch / vm / f"{checkpoint}.{target}.qcow2"

    def prepare(self, vm: VmId, checkpoint: str, owner: tuple[int, int] | None) -> None:
        """Make the directories of a job and check the room for scratch.

        Args:
            vm: whose job.
            checkpoint: of the job.
            owner: uid and gid of this VM's QEMU, which makes the socket itself; None leaves the directory as it is.

        Raises:
            NoSpace: the scratch file system is nearly full.
        """
        sockets, scratch = self.socket(vm, checkpoint).parent, self._scratch / vm
        for directory in (self._sockets, self._scratch, scratch):
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        sockets.mkdir(mode=0o700, exist_ok=True)
        if owner is not None and os.geteuid() == 0:
            os.chown(sockets, *owner)
        require_free(scratch, _MIN_SCRATCH, f"the backup job of {vm}")

    def is_ours(self, vm: VmId, job: RunningBackup) -> bool:
        """Tell whether a running job was begun by us: it serves our socket or writes to our scratch."""
        places = [job.socket.parent] if job.socket is not None else []
        places += [scratch.parent for scratch in job.scratches.values()]
        return bool({self.socket(vm, "").parent, self._scratch / vm} & set(places))

    def scratch_bytes(self, vm: VmId, checkpoint: str, targets: Collection[str]) -> int:
        """Tell the bytes that the scratch images of a job take on disk."""
        total = 0
        for target in targets:
            with contextlib.suppress(FileNotFoundError):
                total += self.scratch(vm, checkpoint, target).stat().st_blocks * _BLOCK
        return total

    def remove(self, vm: VmId, checkpoint: str) -> None:
        """Remove what an ended job left."""
        socket = self.socket(vm, checkpoint)
        for leftover in socket.parent.glob(f"{socket.stem}.*"):
            leftover.unlink(missing_ok=True)
        for scratch in (self._scratch / vm).glob(f"{checkpoint}.*"):
            scratch.unlink(missing_ok=True)

    def sweep(self, vm: VmId) -> None:
        """Remove every file of every job of a VM; none may be running."""
        for directory in (self.socket(vm, "").parent, self._scratch / vm):
            for leftover in directory.glob("*"):
                leftover.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()

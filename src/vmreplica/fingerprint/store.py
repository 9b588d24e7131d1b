"""The fingerprints of a host: one directory per VM, in it the VM's key and one file per disk."""

import contextlib
import secrets
from pathlib import Path
from typing import Final

from vmreplica.fingerprint.file import Fingerprint
from vmreplica.fsio import publish_bytes, remove_tree
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, VmId

_KEY: Final = "key"
_KEY_BYTES: Final = 8


class FingerprintStore:
    """Only one thread may work on a VM at a time.

    Args:
        directory: made when missing; nobody else writes in it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def key(self, vm: VmId) -> int:
        """Give the key of a VM, made when it is asked for first; a lost key makes all fingerprints of it doubtful."""
        path = self._of(vm) / _KEY
        with contextlib.suppress(FileNotFoundError):
            raw = path.read_bytes()
            if len(raw) == _KEY_BYTES:
                return int.from_bytes(raw, "little")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        raw = secrets.token_bytes(_KEY_BYTES)
        publish_bytes(path, raw)
        return int.from_bytes(raw, "little")

    def open(self, vm: VmId, target: DiskTarget) -> Fingerprint | None:
        """Open the fingerprint of a disk; None when there is none, or it is damaged or of another key."""
        try:
            found = Fingerprint.open(self._path(vm, target))
        except (FileNotFoundError, Corrupt):
            return None
        if (found.key, found.target) == (self.key(vm), target):
            return found
        found.close()
        return None

    def create(self, vm: VmId, target: DiskTarget, size: int) -> Fingerprint:
        """Make the fingerprint of a disk of zeroes that describes no point; replaces the one there is.

        Raises:
            NoSpace: the file system is full.
        """
        return Fingerprint.create(self._path(vm, target), key=self.key(vm), size=size, target=target)

    def remove(self, vm: VmId, target: DiskTarget | None = None) -> None:
        """Forget a disk, or a VM with its key; harmless when there is nothing."""
        if target is None:
            remove_tree(self._of(vm))
        else:
            self._path(vm, target).unlink(missing_ok=True)

    def _of(self, vm: VmId) -> Path:
        return self._directory / vm

    def _path(self, vm: VmId, target: DiskTarget) -> Path:
        return self._of(vm) / f"{target}.fp"

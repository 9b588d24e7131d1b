"""What libvirt keeps of a VM outside its disks, on this host: UEFI variables (nvram) and the state of an emulated TPM.

Reading is for the next point; placing is for a VM that a failover defines: copies, under names that carry the VM's id,
in libvirt's own directories, so that they get their owners and labels like those of any other VM, and stay when the
layers that the VM's disks begin on are gone.
"""

import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from defusedxml.ElementTree import fromstring

from vmreplica.fsio import fsync_dir, no_space, publish_bytes, remove_tree
from vmreplica.fsio.packed import pack_file
from vmreplica.model.errors import Internal
from vmreplica.model.ids import VmId
from vmreplica.model.machine import MAX_ENCODED, MAX_MACHINE_FILE, MAX_MACHINE_FILES, MAX_REMARK, NVRAM, MachineFile

NVRAM_DIR: Final = Path("/var/lib/libvirt/qemu/nvram")
TPM_DIR: Final = Path("/var/lib/libvirt/swtpm")
_TPM_VERSIONS: Final = {"2.0": "tpm2", "1.2": "tpm1.2"}
#: Reads of a file that the guest may be writing, until two give the same.
_READS: Final = 4
_NAME: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_MAX_NAME: Final = 64


class _Unreadable(Exception):
    """A file cannot be part of a point; the text says why."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was read, and what could not be, in sentences."""

    files: tuple[MachineFile, ...] = ()
    remarks: tuple[str, ...] = ()


class MachineStore:
    """libvirt's directories for such files.

    Args:
        nvram_dir: of UEFI variables.
        tpm_dir: of TPM states, one directory for each VM.
    """

    def __init__(self, nvram_dir: Path = NVRAM_DIR, tpm_dir: Path = TPM_DIR) -> None:
        self._nvram_dir = nvram_dir
        self._tpm_dir = tpm_dir

    def read(self, vm: VmId, definition: str) -> Machine:
        """Read the files of a VM of this host; what cannot be read is told and never in the way of a point.

        Args:
            vm: its id.
            definition: its inactive definition, from this host's libvirt.
        """
        root = fromstring(definition, forbid_dtd=True)
        files: list[MachineFile] = []
        remarks: list[str] = []
        for name, path in (*self._variables(root, remarks), *self._tpm(vm, root, remarks)):
            try:
                files.append(pack_file(name, _steady(path)))
            except (_Unreadable, ValueError) as error:
                remarks.append(f"{_label(name)}: {error}")
            except FileNotFoundError:
                continue  # the VM was never started
            except OSError as error:
                remarks.append(f"{_label(name)}: {path} cannot be read: {error.strerror}")
        if len(files) > MAX_MACHINE_FILES or sum(len(file.content) for file in files) > MAX_ENCODED:
            return Machine(remarks=("nvram and TPM state are too large to travel with a point",))
        return Machine(tuple(files), tuple(remark[:MAX_REMARK] for remark in remarks))

    def nvram(self, vm: VmId) -> Path:
        """Tell where the UEFI variables of a VM that we define stand."""
        return self._nvram_dir / f"{vm}_VARS.vmreplica.fd"

    def place(self, vm: VmId, files: Mapping[str, bytes]) -> None:
        """Write the files of a VM that is about to be defined; those of an earlier attempt go.

        Args:
            vm: its id; nothing of that id is defined here.
            files: by name, as ``read`` names them.

        Raises:
            NoSpace: the file system is full.
        """
        self.remove(vm)
        for name, content in files.items():
            path = self.nvram(vm) if name == NVRAM else self._tpm_dir / vm / name
            with no_space(self._nvram_dir if name == NVRAM else self._tpm_dir):
                _make_dirs(path.parent)
                publish_bytes(path, content)
                _give_to_owner_of(path.parent, path)

    def remove(self, vm: VmId) -> None:
        """Remove the files of a VM that we defined; harmless when there are none.

        Raises:
            Internal: ``machine-files-stay``.
        """
        try:
            self.nvram(vm).unlink(missing_ok=True)
            remove_tree(self._tpm_dir / vm)
        except OSError as error:
            raise Internal(
                "machine-files-stay",
                f"nvram or TPM state of the VM {vm} cannot be removed: {error.filename}: {error.strerror}",
                hint="look at that file and at the host's kernel log",
                kind="operator",
            ) from error

    def _variables(self, root: ET.Element, remarks: list[str]) -> Iterator[tuple[str, Path]]:
        nvram = root.find("os/nvram")
        if nvram is None:
            if root.find("os[@firmware='efi']") is not None:
                # libvirt chooses the file when the VM starts, and forgets its name when it is off.
                yield NVRAM, self._nvram_dir / f"{root.findtext('name', '')}_VARS.fd"
            return
        text, source = (nvram.text or "").strip(), nvram.find("source")
        if source is not None and source.get("file"):
            text = source.get("file", "")
        if nvram.get("type", "file") != "file" or not text.startswith("/"):
            remarks.append("nvram: the UEFI variables are not in a file of this host")
        elif nvram.get("format", "raw") != "raw":
            remarks.append(f"nvram: the UEFI variables are in {nvram.get('format')} format, only raw ones can be read")
        else:
            yield NVRAM, Path(text)

    def _tpm(self, vm: VmId, root: ET.Element, remarks: list[str]) -> Iterator[tuple[str, Path]]:
        backend = root.find("devices/tpm/backend")
        if backend is None:
            return
        if backend.get("type") != "emulator":
            remarks.append(f"tpm: it is of the type {backend.get('type')}, whose state stays on its host")
            return
        if backend.find("encryption") is not None:
            remarks.append("tpm: its state is encrypted with a secret of this host's libvirt")
            return
        version = _TPM_VERSIONS.get(backend.get("version", "2.0"), "tpm2")
        directory = self._tpm_dir / vm / version
        source = backend.find("source")
        if source is not None and source.get("type") == "dir" and source.get("path"):
            directory = Path(source.get("path", ""))
        elif source is not None:
            remarks.append("tpm: its state is not in a directory of its own")
            return
        yield from _tpm_files(directory, version)


def _tpm_files(directory: Path, version: str) -> Iterator[tuple[str, Path]]:
    """Name the files of a TPM; swtpm's lock and what it is just writing are none."""
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False))
    except OSError:
        return
    for name in names:
        if _NAME.issuperset(name) and name[0].isalnum() and len(name) <= _MAX_NAME and not name.startswith("TMP"):
            yield f"{version}/{name}", directory / name


def _label(name: str) -> str:
    return "nvram" if name == NVRAM else f"tpm ({name})"


def _steady(path: Path) -> bytes:
    """Read a file that may be written meanwhile: twice the same."""
    before = _read(path)
    for _ in range(_READS):
        now = _read(path)
        if now == before:
            return now
        before = now
    raise _Unreadable("it is being written all the time")


def _read(path: Path) -> bytes:
    # Not blocking: whatever stands in place of the file must not hold the cycle.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        told = os.fstat(fd)
        if not stat.S_ISREG(told.st_mode):
            raise _Unreadable(f"{path} is no regular file")
        if told.st_size > MAX_MACHINE_FILE:
            raise _Unreadable(f"{path} has {told.st_size} bytes, {MAX_MACHINE_FILE} are the most")
        return file.read(MAX_MACHINE_FILE)


def _make_dirs(path: Path) -> None:
    """Make directories as libvirt does: the innermost private where it belongs to one VM."""
    if not path.exists():
        path.mkdir(mode=0o711, parents=True)
        fsync_dir(path.parent)


def _give_to_owner_of(directory: Path, path: Path) -> None:
    """Let QEMU's user open it also where libvirt is told not to change owners."""
    owner = directory.stat()
    os.chown(path, owner.st_uid, owner.st_gid)

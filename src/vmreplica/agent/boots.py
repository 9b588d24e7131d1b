"""Which VMs this host still has to start since it was booted: once per boot, whatever becomes of the agent."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from vmreplica.fsio import publish_bytes
from vmreplica.model.ids import VmId
from vmreplica.model.shape import Shape

#: Of process 1, the time of its start: the 20th field behind its name. A container has no boot id of its own.
_START_FIELD = 19


class BootRecord(Shape):
    """``boot.json``."""

    boot: str
    waiting: tuple[VmId, ...]


class Boots:
    """Used by one thread.

    Args:
        file: what is kept over restarts of the agent.
        boot: what differs after each boot; None: this host's.
    """

    def __init__(self, file: Path, boot: str | None = None) -> None:
        self._file = file
        self._boot = boot or this_boot()

    def waiting(self) -> frozenset[VmId] | None:
        """Tell which VMs wait to be started; None: nobody has looked since the boot.

        Where no agent has ever looked, libvirt has started what was to be started.
        """
        try:
            record = BootRecord.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            self.wait_for(())
            return frozenset()
        except (OSError, ValidationError):
            return None
        return frozenset(record.waiting) if record.boot == self._boot else None

    def wait_for(self, vms: Iterable[VmId]) -> None:
        """Take note of which VMs wait to be started."""
        record = BootRecord(boot=self._boot, waiting=tuple(sorted(vms)))
        publish_bytes(self._file, record.model_dump_json().encode())


def this_boot() -> str:
    """Name the present boot of this host."""
    fields = Path("/proc/1/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[_START_FIELD]}"

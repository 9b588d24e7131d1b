"""What keeps a VM from being started: files that libvirt's hook looks at, whether an agent runs or not.

``<directory>/<uuid>.json`` forbids every start of that VM, with the reason in words. ``<uuid>.permit`` lets one start
through, soon: a person, or the agent that knows better, has said so. ``qemu_hook`` is the reader.
"""

import contextlib
import datetime as dt
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, ValidationError

from vmreplica.fsio import publish_bytes
from vmreplica.model.ids import VmId
from vmreplica.model.shape import Shape

#: Seconds for which a permit is good: libvirt comes to the hook at once.
PERMIT_SECONDS: Final = 120


class FenceRecord(Shape):
    """``<uuid>.json``."""

    #: A sentence that ends with what a person can do.
    reason: str
    #: The replica may lift it: it is asked at each start. Else only ``allow`` ends it.
    ask: bool = False
    since: AwareDatetime


class Fence:
    """Thread-safe; each act is one file, put in place or removed at once.

    Args:
        directory: made when missing; the hook of this host is told the same one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def forbid(self, vm: VmId, reason: str, *, ask: bool = False) -> None:
        """Refuse every start of a VM from now on, over restarts of everything.

        Args:
            vm: which.
            reason: shown to whoever tries; a sentence with the command that helps.
            ask: whether the VM's replica may lift it, when it is asked at a start.

        Raises:
            NoSpace: the file system is full.
        """
        known = self.find(vm)
        if known is not None and (known.reason, known.ask) == (reason, ask):
            return
        record = FenceRecord(reason=reason, ask=ask, since=dt.datetime.now(dt.UTC))
        publish_bytes(self._file(vm), record.model_dump_json().encode())

    def allow(self, vm: VmId) -> None:
        """Forbid a VM's start no longer; harmless when nobody did. A permit that was not used is void."""
        self._file(vm).unlink(missing_ok=True)
        self.withdraw(vm)

    def permit_once(self, vm: VmId) -> None:
        """Let the next start of a VM through, whatever forbids it, if it comes within two minutes."""
        until = time.time() + PERMIT_SECONDS
        publish_bytes(self._permit(vm), json.dumps({"until": until}).encode(), durable=False)

    def withdraw(self, vm: VmId) -> None:
        """Take an unused permit back; harmless when there is none."""
        self._permit(vm).unlink(missing_ok=True)

    @contextlib.contextmanager
    def permitted(self, vm: VmId) -> Iterator[None]:
        """Let one start through that happens inside the block."""
        self.permit_once(vm)
        try:
            yield
        finally:
            self.withdraw(vm)

    def find(self, vm: VmId) -> FenceRecord | None:
        """Tell what forbids a VM's start; None: nothing does. A file that cannot be read forbids too."""
        path = self._file(vm)
        try:
            return FenceRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            reason = f"its fence {path} cannot be read; remove it only if you know that the VM runs nowhere else"
            return FenceRecord(reason=reason, since=dt.datetime.now(dt.UTC))

    def reason(self, vm: VmId) -> str | None:
        """Tell in words what forbids a VM's start; None: nothing does."""
        record = self.find(vm)
        return None if record is None else record.reason

    def _file(self, vm: VmId) -> Path:
        return self.directory / f"{vm}.json"

    def _permit(self, vm: VmId) -> Path:
        return self.directory / f"{vm}.permit"

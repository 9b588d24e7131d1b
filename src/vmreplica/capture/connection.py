"""One connection to an NBD export, where every wait has a limit and can be cancelled."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import nbd

from vmreplica.model.errors import HypervisorError, TimedOut, VmReplicaError
from vmreplica.spool import cancelled

#: Seconds for one request; a disk that needs longer stands still.
TIME_LIMIT: Final = 120.0
#: Seconds for the handshake, which is never given up on request: see ``Connection``.
HANDSHAKE_LIMIT: Final = 20.0
_POLL_MS: Final = 200
_HINT: Final = "the next cycle tries again from the last acknowledged point"


class Export(Protocol):
    """A disk of a frozen view, served over NBD on a unix socket."""

    @property
    def socket(self) -> Path:
        """Where the server listens."""
        ...

    @property
    def name(self) -> str:
        """Name of the export."""
        ...

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        ...

    @property
    def bitmap(self) -> str | None:
        """Dirty bitmap that tells what changed; None: the whole disk is read."""
        ...


class Connection:
    """For one thread at a time.

    Requests are asynchronous underneath, with one buffer that the caller reuses: a synchronous call could neither be
    limited nor cancelled, and a new buffer for each read is memory that comes back late.

    A handshake is always gone through, whoever wants to stop: QEMU's ``nbd-server-stop`` waits for clients that it
    serves no more while they are in their handshake, and the VM stands still with it for ever (seen in QEMU 7.2).
    Whoever ends the job must have closed every connection before.

    Args:
        export: what to connect to.
        what: names disk and VM, for errors.
        stopped: tells whether to give up.
        context: metadata context to ask for, none if not given.

    Raises:
        HypervisorError: ``backup-export-lost``; nobody serves the export (any more).
        TimedOut: ``backup-read-timeout``.
        Conflict: ``cancelled``.
    """

    def __init__(self, export: Export, what: str, stopped: Callable[[], bool], *, context: str | None = None) -> None:
        self._what = what
        self._stopped = stopped
        self._context = context
        self._handle = nbd.NBD()
        with self._errors():
            self._handle.set_export_name(export.name)
            self._handle.set_pread_initialize(request=False)
            # Extents need structured replies. Reads must not have them: QEMU hangs up on an I/O error within one.
            self._handle.set_request_structured_replies(request=context is not None)
            if context is not None:
                self._handle.add_meta_context(context)
            self._handle.aio_connect_unix(str(export.socket))
            self._shake_hands()
            self.size = self._handle.get_size()

    def close(self) -> None:
        """Hang up; again is harmless."""
        # libnbd closes the socket of a handle that nobody holds any more; a fresh one has none.
        self._handle = nbd.NBD()

    def has_context(self) -> bool:
        """Tell whether the server knows the metadata context."""
        return self._context is not None and self._handle.can_meta_context(self._context)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with guest bytes from an offset on.

        Raises:
            HypervisorError: ``backup-read-failed`` (an I/O error of the disk) or ``backup-export-lost``.
            TimedOut: ``backup-read-timeout``.
            Conflict: ``cancelled``.
        """
        with self._errors():
            # The memory itself, not an nbd.Buffer made of it: that is never freed again (libnbd 1.14).
            self._complete(self._handle.aio_pread(buffer, offset))

    def extents(self, offset: int, count: int) -> Sequence[tuple[int, int]]:
        """Ask for (length, flags) pairs of the context from an offset on; may answer for less or more than asked.

        Raises:
            HypervisorError: ``backup-read-failed`` or ``backup-export-lost``.
            TimedOut: ``backup-read-timeout``.
            Conflict: ``cancelled``.
        """
        found: list[tuple[int, int]] = []

        def keep(context: str, _offset: int, entries: Sequence[int], _error: int) -> int:
            if context == self._context:
                found.extend(zip(entries[::2], entries[1::2], strict=True))
            return 0

        with self._errors():
            self._complete(self._handle.aio_block_status(count, offset, keep))
        return found

    def _complete(self, cookie: int) -> None:
        self._wait(lambda: self._handle.aio_command_completed(cookie))

    def _shake_hands(self) -> None:
        deadline = time.monotonic() + HANDSHAKE_LIMIT
        while self._handle.aio_is_connecting() or self._handle.aio_is_negotiating():
            if time.monotonic() > deadline:
                text = f"{self._what}: the backup export did not answer for {HANDSHAKE_LIMIT:.0f} s"
                raise TimedOut("backup-read-timeout", text, hint=_HINT)
            self._handle.poll(_POLL_MS)
        if not self._handle.aio_is_ready():
            raise self._lost("the connection was not accepted")

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIME_LIMIT
        while not done():
            if self._stopped():
                raise cancelled(self._what)
            if time.monotonic() > deadline:
                text = f"{self._what}: the backup export did not answer for {TIME_LIMIT:.0f} s"
                raise TimedOut("backup-read-timeout", text, hint=_HINT)
            self._handle.poll(_POLL_MS)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell a view that went away (guest shut down, job ended) from a disk that cannot be read."""
        try:
            yield
        except nbd.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: nbd.Error) -> VmReplicaError:
        if not self._handle.aio_is_ready() or error.errno in {"ESHUTDOWN", "ENOTCONN"}:
            return self._lost(error.string)
        return HypervisorError(
            "backup-read-failed",
            f"{self._what}: the frozen view cannot be read: {error}",
            hint="look for I/O errors of the disk's storage in the kernel log of this host",
        )

    def _lost(self, detail: str) -> HypervisorError:
        return HypervisorError(
            "backup-export-lost",
            f"{self._what}: its frozen view went away (was the VM shut down?): {detail}",
            hint=_HINT,
        )

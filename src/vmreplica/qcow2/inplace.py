"""Writing into an image that is not ours alone, an old disk of a VM, through a qemu-nbd of its own.

QEMU does the writing: the image may be of any shape (backing files, snapshots, bitmaps of others) and stays as sound as
under a VM, also when the server is killed. It takes QEMU's lock on the image, so no VM can run on it meanwhile.
"""

import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Literal

import nbd

from vmreplica.model.errors import Conflict, HypervisorError, NoSpace, TimedOut, VmReplicaError
from vmreplica.model.units import GiB
from vmreplica.qcow2.flatten import TargetDisk
from vmreplica.qcow2.tools import chain_info

ImageFormat = Literal["qcow2", "raw"]

_START_SECONDS: Final = 30.0
#: For one request; a disk that needs longer stands still.
_TIME_LIMIT: Final = 120.0
#: For closing the image in good order.
_CLOSE_SECONDS: Final = 120.0
_GLANCE: Final = 0.02
_POLL_MS: Final = 200
#: Address space of the server.
_MEMORY: Final = 8 * GiB
#: Requests on their way, each of 4 MiB at most.
_IN_FLIGHT: Final = 4
_ZEROES: Final = 1 * GiB
_MESSAGE: Final = 2000


class ServedDisk(TargetDisk):
    """A disk inside an image that a server has open for writing.

    Args:
        handle: connected to it.
        size: of the disk in bytes.
        what: path of the image, for errors.
    """

    def __init__(self, handle: nbd.NBD, size: int, what: str) -> None:
        super().__init__(size)
        self._handle = handle
        self._what = what
        #: What is on its way, with the memory that it is read from.
        self._sent: deque[tuple[int, bytes]] = deque()

    def _store(self, data: bytes, offset: int) -> None:
        while len(self._sent) >= _IN_FLIGHT:
            self._receive()
        with _errors(self._what):
            self._sent.append((self._handle.aio_pwrite(data, offset), data))

    def _blank(self, offset: int, size: int) -> None:
        self._drain()
        for start in range(offset, offset + size, _ZEROES):
            with _errors(self._what):
                self._sent.append((self._handle.aio_zero(min(_ZEROES, offset + size - start), start), b""))
            self._receive()

    def _flush(self) -> None:
        self._drain()
        with _errors(self._what):
            self._sent.append((self._handle.aio_flush(), b""))
        self._receive()

    def _drain(self) -> None:
        while self._sent:
            self._receive()

    def _receive(self) -> None:
        cookie, _data = self._sent[0]
        deadline = time.monotonic() + _TIME_LIMIT
        with _errors(self._what):
            while not self._handle.aio_command_completed(cookie):
                if time.monotonic() > deadline:
                    raise TimedOut(
                        "adopted-base-timeout",
                        f"{self._what} could not be written for {_TIME_LIMIT:.0f} s",
                        hint="look at the host's disks and the kernel log",
                    )
                self._handle.poll(_POLL_MS)
        self._sent.popleft()


@contextmanager
def served(path: Path, form: ImageFormat, size: int) -> Iterator[ServedDisk]:
    """Open the disk in an image for writing; it is closed in good order, also when the agent is killed.

    Args:
        path: absolute.
        form: of the image.
        size: of the disk in bytes; the image is made so big if it is smaller.

    Raises:
        Conflict: ``adopted-base-in-use``: a VM or another program has the image open.
        HypervisorError: ``adopted-base-failed``: QEMU cannot open or write it; ``qemu-nbd-failed``: not installed.
        NoSpace: the image's file system is full.
        TimedOut: ``adopted-base-timeout``.
    """
    _grow(path, form, size)
    with tempfile.TemporaryFile() as complaints, _running(path, form, complaints) as handle:
        yield ServedDisk(handle, size, str(path))


@contextmanager
def _running(path: Path, form: ImageFormat, complaints: IO[bytes]) -> Iterator[nbd.NBD]:
    with ExitStack() as ending:
        # Once connected, nobody needs the socket's name: an agent that is killed later leaves no file.
        with tempfile.TemporaryDirectory(prefix="vmreplica-") as directory:
            listen = Path(directory) / "nbd"
            server = _begun(path, form, listen, complaints)
            ending.callback(_end, server)
            handle = _connected(server, listen, lambda: _said(complaints), str(path))
        yield handle


def _begun(path: Path, form: ImageFormat, listen: Path, complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    # A killed agent's server is asked to end, not killed: it stores the bitmaps that others keep in the image.
    limits = ["prlimit", f"--as={_MEMORY}", "--core=0", "setpriv", "--pdeathsig", "TERM"]
    arguments = ["--persistent", "--discard=unmap", f"--format={form}", f"--socket={listen}", str(path)]
    try:
        return subprocess.Popen(
            [*limits, "qemu-nbd", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        )
    except FileNotFoundError as error:
        raise _not_installed(error.filename) from error


def _connected(server: subprocess.Popen[bytes], listen: Path, said: Callable[[], str], what: str) -> nbd.NBD:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        handle = nbd.NBD()
        with suppress(nbd.Error):
            handle.connect_unix(str(listen))
            return handle
        if server.poll() is not None:
            raise _refused(what, said())
        if time.monotonic() > deadline:
            text = f"qemu-nbd over {what} did not begin within {_START_SECONDS:.0f} s"
            raise TimedOut("adopted-base-timeout", text, hint="look at the load of the host")
        time.sleep(_GLANCE)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _said(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    return complaints.read(_MESSAGE).decode(errors="replace").strip()


def _grow(path: Path, form: ImageFormat, size: int) -> None:
    """Make an image's disk as big as this; never smaller."""
    info = chain_info(path, form)[0]
    if int(info["virtual-size"]) >= size:
        return
    for bitmap in info.get("format-specific", {}).get("data", {}).get("bitmaps", []):
        if "in-use" in bitmap["flags"]:
            # Of a QEMU that was killed: nobody can use it any more, and with it QEMU refuses to change the size.
            _run(["bitmap", "--remove", "-f", form, str(path), bitmap["name"]], str(path))
    _run(["resize", "-q", "-f", form, str(path), str(size)], str(path))


def _run(arguments: list[str], what: str) -> None:
    try:
        run = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=_TIME_LIMIT, check=False)
    except FileNotFoundError as error:
        raise _not_installed("qemu-img") from error
    except subprocess.TimeoutExpired as error:
        text = f"qemu-img {arguments[0]} of {what} took longer than {_TIME_LIMIT:.0f} s"
        raise TimedOut("adopted-base-timeout", text, hint="look at the host's disks and the kernel log") from error
    if run.returncode != 0:
        raise _refused(what, run.stderr.strip()[-_MESSAGE:])


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except nbd.Error as error:
        if error.errno in {"ENOSPC", "EDQUOT"}:
            raise NoSpace(
                "no-space",
                f"the file system of {what} is full",
                hint="free some space there; nothing is lost, it goes on by itself",
                kind="operator",
            ) from error
        raise _refused(what, str(error)) from error


def _refused(what: str, said: str) -> VmReplicaError:
    if " lock" in said:
        return Conflict(
            "adopted-base-in-use",
            f"{what}, the base of a replica here, is in use by another program, a running VM perhaps",
            hint=f"end what uses it (fuser -v {what}): it must not be written, and no VM may run on it",
            kind="transient",
        )
    return HypervisorError(
        "adopted-base-failed",
        f"{what}, the base of a replica here, cannot be written: {said}",
        hint=f"look at it with `qemu-img info {what}` and at the kernel log; no point is lost meanwhile",
    )


def _not_installed(tool: str) -> HypervisorError:
    hint = "apt install qemu-utils util-linux"
    return HypervisorError("qemu-nbd-failed", f"{tool} is not installed", hint=hint, kind="operator")

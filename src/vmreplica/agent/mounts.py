"""Points that can be read over NBD on this host: a read-only qemu-nbd per disk, on a socket only root can use.

A mount belongs to the agent and ends with it. What a killed agent leaves running is found by its pid file and ended at
the next start, before anything merges the images that it reads.
"""

import contextlib
import datetime as dt
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from vmreplica.fsio import remove_tree
from vmreplica.model.errors import Conflict, HypervisorError, NotFound
from vmreplica.model.ids import PointId, VmId
from vmreplica.model.taking import MountedDisk, PointMount
from vmreplica.repository import Replica

_log: Final = structlog.get_logger(__name__)

#: Mounts of this host at once.
MAX_MOUNTS: Final = 16
#: Seconds in which qemu-nbd begins to listen.
_START: Final = 30.0
_POLL: Final = 0.05
#: Seconds that it has to end.
_END: Final = 10.0
#: Readers of one disk at once.
_READERS: Final = 8
#: Bytes of what a server complains of that are passed on.
_TOLD: Final = 1000
_GREETING: Final = b"NBDMAGIC"
_PID: Final = re.compile(r"\d{1,9}")


@dataclass(slots=True)
class _Mounted:
    replica: Replica
    mount: PointMount
    hold: str
    directory: Path
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)


class Mounts:
    """Thread-safe.

    Args:
        directory: below the runtime directory; for sockets.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._mounted: dict[tuple[VmId, PointId], _Mounted] = {}

    def recover(self) -> None:
        """End what a killed agent left running."""
        for record in sorted(self._directory.glob("*/*.pid")):
            _end_stray(record)
        for directory in self._directory.glob("*") if self._directory.is_dir() else ():
            remove_tree(directory)

    def stop(self) -> None:
        """End all mounts."""
        with self._lock:
            left = list(self._mounted.values())
        for mounted in left:
            self._end(mounted, "the agent ends")

    def begin(self, replica: Replica, point: PointId, *, seconds: int, warnings: Sequence[str]) -> PointMount:
        """Make a point's disks readable; it is held open until that ends.

        Raises:
            Conflict: ``already-mounted``, ``too-many-mounts``.
            HypervisorError: ``qemu-nbd-failed``.
        """
        now = dt.datetime.now(dt.UTC)
        until = now + dt.timedelta(seconds=seconds)
        # A short name: the path of a socket has at most 107 bytes.
        directory = self._directory / secrets.token_hex(4)
        mount = PointMount(
            vm=replica.record.vm,
            name=replica.record.name,
            point=point,
            disks=_disks(replica, point, directory),
            since=now,
            until=until,
            warnings=tuple(warnings),
        )
        reason = f"readable over NBD until {until.astimezone():%Y-%m-%d %H:%M}"
        # A fold may have to give way first, which takes a moment: not under the lock.
        hold = replica.hold(point, "mount", reason, lasting=False)
        with self._lock:
            try:
                self._require_free(replica, point)
            except Conflict:
                replica.release(hold)
                raise
            mounted = self._mounted[replica.record.vm, point] = _Mounted(replica, mount, hold, directory)
            try:
                self._serve(mounted)
            except BaseException:
                self._remove(mounted)
                raise
        threading.Thread(target=self._watch, args=(mounted, seconds), name="mount", daemon=True).start()
        return mount

    def end(self, replica: Replica, point: PointId | None) -> tuple[PointId, ...]:
        """End the mount of a point, or of all points of a VM; tells which.

        Raises:
            NotFound: ``not-mounted``.
        """
        with self._lock:
            found = [m for m in self._mounted.values() if m.replica is replica and point in {None, m.mount.point}]
        if not found:
            name = replica.record.name
            what = f"point {point}" if point else "no point"
            text = f"{what} of {name} is {'not ' if point else ''}mounted"
            raise NotFound("not-mounted", text, hint=f"vmreplica points {name} shows what is held")
        for mounted in found:
            self._end(mounted, "it was asked for")
        return tuple(mounted.mount.point for mounted in found)

    def of(self, vm: VmId) -> tuple[PointMount, ...]:
        """Tell the mounts of a VM."""
        with self._lock:
            return tuple(mounted.mount for mounted in self._mounted.values() if mounted.mount.vm == vm)

    # ---- helpers

    def _require_free(self, replica: Replica, point: PointId) -> None:
        name = replica.record.name
        if (replica.record.vm, point) in self._mounted:
            hint = f"vmreplica status {name} shows its addresses; vmreplica points unmount {name} {point}"
            raise Conflict("already-mounted", f"point {point} of {name} is mounted already", hint=hint)
        if len(self._mounted) >= MAX_MOUNTS:
            raise Conflict(
                "too-many-mounts",
                f"{len(self._mounted)} points are mounted on this host already",
                hint="vmreplica status VM shows those of a VM; vmreplica points unmount VM ends them",
            )

    def _serve(self, mounted: _Mounted) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        mounted.directory.mkdir(mode=0o700)
        for disk in mounted.mount.disks:
            image = mounted.replica.image(mounted.mount.point, disk.target)
            mounted.servers.append(_start(image, disk))
        deadline = time.monotonic() + _START
        for disk, server in zip(mounted.mount.disks, mounted.servers, strict=True):
            _await_server(disk, server, deadline)

    def _watch(self, mounted: _Mounted, seconds: int) -> None:
        """End it when its time is over, or one of its servers has ended."""
        deadline = time.monotonic() + seconds
        while not mounted.ending.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                self._end(mounted, "its time is over")
            elif any(server.poll() is not None for server in mounted.servers):
                self._end(mounted, "a qemu-nbd of it has ended")

    def _end(self, mounted: _Mounted, why: str) -> None:
        with self._lock:
            if mounted.ending.is_set():
                return
            self._remove(mounted)
        _log.info("mount ended", vm=mounted.mount.vm, point=mounted.mount.point, why=why)

    def _remove(self, mounted: _Mounted) -> None:
        mounted.ending.set()
        for server in mounted.servers:
            server.terminate()
        for server in mounted.servers:
            try:
                server.wait(_END)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        remove_tree(mounted.directory)
        mounted.replica.release(mounted.hold)
        del self._mounted[mounted.mount.vm, mounted.mount.point]


def _disks(replica: Replica, point: PointId, directory: Path) -> tuple[MountedDisk, ...]:
    return tuple(
        MountedDisk(
            target=disk.target,
            size=disk.size,
            uri=f"nbd+unix:///{disk.target}?socket={quote(str(directory / f'{disk.target}.sock'))}",
            socket=str(directory / f"{disk.target}.sock"),
        )
        for disk in replica.point(point).disks
    )


def _start(image: Path, disk: MountedDisk) -> subprocess.Popen[bytes]:
    if shutil.which("qemu-nbd") is None:
        hint = "apt install qemu-utils"
        raise HypervisorError("qemu-nbd-failed", "qemu-nbd is not installed", hint=hint, kind="operator")
    command = [
        "qemu-nbd",
        "--read-only",
        "--persistent",
        f"--shared={_READERS}",
        "--format=qcow2",
        f"--export-name={disk.target}",
        f"--socket={disk.socket}",
        f"--pid-file={Path(disk.socket).with_suffix('.pid')}",
        str(image.absolute()),
    ]
    with _said(disk).open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )


def _said(disk: MountedDisk) -> Path:
    return Path(disk.socket).with_suffix(".log")


def _await_server(disk: MountedDisk, server: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for a server's greeting: it listens before it has opened its image."""
    while not _greets(disk):
        if server.poll() is not None or time.monotonic() > deadline:
            said = _said(disk).read_bytes()[:_TOLD].decode(errors="replace").strip()
            told = said or f"it does not answer after {_START:.0f} s"
            raise HypervisorError("qemu-nbd-failed", f"qemu-nbd cannot serve {disk.target}: {told}")
        time.sleep(_POLL)


def _greets(disk: MountedDisk) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(disk.socket)
        return connection.recv(len(_GREETING)) == _GREETING
    return False


def _end_stray(record: Path) -> None:
    """End a qemu-nbd by its pid file, if the process of that number is the one."""
    with contextlib.suppress(OSError):
        text = record.read_text().strip()
        if not _PID.fullmatch(text):
            return
        command = Path(f"/proc/{text}/cmdline").read_bytes().split(b"\0")
        if f"--pid-file={record}".encode() in command:
            os.kill(int(text), signal.SIGKILL)
            _log.info("ended a qemu-nbd that a killed agent left", pid=int(text))

"""nbdcopy over mutual TLS: the plain way to bring a running guest's disk to another host.

On the primary, libvirt exports the frozen disk over a unix socket, exactly as for us. nbdcopy reads it and writes over
TLS to qemu-nbd on the replica, which stores it in a new qcow2 file. The copy is uncompressed, flushed at the end, and
no recovery point; it is what a good script does today.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.backup import frozen_view
from bench.certificates import Authority
from bench.hosts import Host, peak_memory, run, running, sent_bytes

PORT = 10809
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Copied:
    """One copy: seconds from asking for the frozen view to the flushed image, bytes on the wire, memory."""

    seconds: float
    wire_bytes: int
    sender_peak_bytes: int
    receiver_peak_bytes: int


class TlsCopy:
    """nbdcopy between two hosts, with certificates made once."""

    def __init__(self, primary: Host, replica: Host) -> None:
        self._primary, self._replica = primary, replica
        self._client, self._server = primary.scratch / "nbdcopy-tls", replica.scratch / "nbdcopy-tls"
        authority = Authority()
        authority.issue(self._client, endpoint="client", address=primary.address)
        authority.issue(self._server, endpoint="server", address=replica.address)

    @contextmanager
    def _target(self, image: Path, size: int) -> Iterator[int]:
        run(self._replica, "qemu-img", "create", "-q", "-f", "qcow2", image, str(size))
        credentials = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir={self._server}"
        where = ["-b", self._replica.address, "-p", str(PORT), "-x", "disk"]
        how = ["--tls-creds", "tls", "-t", "-e", str(CONNECTIONS), "-f", "qcow2", "--discard=unmap"]
        with running(self._replica, ["qemu-nbd", "--object", credentials, *where, *how, image]) as server:
            self._wait_until_listening()
            yield server.pid

    def _wait_until_listening(self) -> None:
        probe = f"</dev/tcp/{self._replica.address}/{PORT}"
        deadline = time.monotonic() + 20
        while True:
            try:
                run(self._primary, "bash", "-c", probe)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def copy_export(self, source: str, image: Path, size: int) -> Copied:
        """Copy what an NBD address exports on the primary into a new qcow2 file on the replica."""
        with self._target(image, size) as server:
            before = sent_bytes(self._primary)
            where = f"nbds://{self._replica.address}:{PORT}/disk?tls-certificates={self._client}"
            copy = run(self._primary, "nbdcopy", "--destination-is-zero", "--flush", source, where)
            wire_bytes = sent_bytes(self._primary) - before
            return Copied(copy.seconds, wire_bytes, copy.peak_bytes, peak_memory(server))

    def copy_disk(self, guest: str, target: str, size: int) -> Copied:
        """Copy one disk of a running guest; the file is removed again."""
        image = self._replica.scratch / "nbdcopy.qcow2"
        begun = time.perf_counter()
        with frozen_view(self._primary, guest, target) as socket:
            view_ready = time.perf_counter()
            copied = self.copy_export(f"nbd+unix:///{target}?socket={socket}", image, size)
            ended = time.perf_counter()
        seconds = (view_ready - begun) + copied.seconds + (time.perf_counter() - ended)
        image.unlink()
        return Copied(seconds, copied.wire_bytes, copied.sender_peak_bytes, copied.receiver_peak_bytes)

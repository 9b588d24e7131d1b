"""A slow line in user space: forwards frames between two interfaces with a bandwidth and a delay of its own.

Run as a script inside the middle namespace, because kernels of small machines lack netem and tbf. Frames are carried
with their virtio-net header, so segmentation and checksum offloads stay intact. Modest accuracy is enough.
"""

import dataclasses
import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_ETH_P_ALL: Final = 3
_VNET_HEADER: Final = 10
_LARGEST: Final = 256 * 1024
_BATCH: Final = 64
#: A line's queue holds this many seconds of its bandwidth, and never less than a few large frames.
_QUEUE_SECONDS: Final = 0.2
_QUEUE_LEAST: Final = 256 * 1024


@dataclasses.dataclass(slots=True)
class Line:
    """One direction: a queue in front of a bandwidth, then a delay. Times are seconds of any one clock."""

    bytes_per_second: float
    delay: float
    _free_at: float = 0.0
    _queue: deque[tuple[float, bytes]] = dataclasses.field(default_factory=deque)

    def put(self, frame: bytes, now: float) -> bool:
        """Take a frame; False when the queue is full and the frame is lost."""
        start = max(now, self._free_at)
        backlog = (start - now) * self.bytes_per_second
        if backlog > max(_QUEUE_LEAST, _QUEUE_SECONDS * self.bytes_per_second):
            return False
        self._free_at = start + len(frame) / self.bytes_per_second
        self._queue.append((self._free_at + self.delay, frame))
        return True

    def due(self) -> float | None:
        """Tell when the next frame leaves."""
        return self._queue[0][0] if self._queue else None

    def take(self, now: float) -> bytes | None:
        """Give the next frame if its time has come."""
        if self._queue and self._queue[0][0] <= now:
            return self._queue.popleft()[1]
        return None


def open_port(interface: str) -> socket.socket:
    """Open an interface for whole frames."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
    port.bind((interface, _ETH_P_ALL))
    port.setblocking(False)
    return port


def receive(port: socket.socket, line: Line) -> None:
    """Take what has arrived, in bounded portions."""
    for _ in range(_BATCH):
        try:
            frame = port.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            return  # the interface went down with its host
        if len(frame) > _VNET_HEADER:
            line.put(frame, time.monotonic())


def send(port: socket.socket, line: Line) -> None:
    """Let go what is due; a frame that the interface refuses is lost, as on any line."""
    while (frame := line.take(time.monotonic())) is not None:
        try:
            port.send(frame)
        except OSError:
            continue


def forward(one: socket.socket, other: socket.socket, to_other: Line, to_one: Line) -> None:
    """Forward for ever."""
    while True:
        dues = [due for due in (to_other.due(), to_one.due()) if due is not None]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable, _, _ = select.select([one, other], [], [], wait)
        if one in readable:
            receive(one, to_other)
        if other in readable:
            receive(other, to_one)
        send(other, to_other)
        send(one, to_one)


def main() -> None:
    """Start with: interface, interface, Mbit/s, ms, file for the process id."""
    one, other, mbit, ms, pid_file = sys.argv[1:]
    ports = open_port(one), open_port(other)
    lines = [Line(float(mbit) * 1e6 / 8, float(ms) / 1e3) for _ in ports]
    Path(pid_file).write_text(f"{os.getpid()}\n")
    forward(*ports, *lines)


if __name__ == "__main__":
    main()

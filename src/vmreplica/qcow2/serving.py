"""qemu-nbd over an image of somebody else's: read-only, on a socket of ours, gone with us."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmreplica.model.errors import Corrupt, HypervisorError, TimedOut
from vmreplica.qcow2.foreign import ForeignImage

_START_SECONDS: Final = 30.0
_GLANCE: Final = 0.05
_CLIENTS: Final = 64
#: Address space of a server: a hostile image shall not take the memory of the host.
_MEMORY: Final = 8 << 30
_MESSAGE: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedImage:
    """What capture is given: the image as an export without a bitmap; ``size`` in bytes."""

    socket: Path
    name: str
    size: int
    bitmap: None = None


class ImageServer:
    """Serves one image while the block lasts; killed with the thread that began it, also when the agent is killed.

    Args:
        image: open until the block has ended.
        size: bytes of its disk to show.
        listen: the socket, made anew.
    """

    def __init__(self, image: ForeignImage, size: int, listen: Path) -> None:
        self._image = image
        self._listen = listen
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._server: subprocess.Popen[bytes] | None = None
        self.export = ServedImage(socket=listen, name="", size=size)

    def __enter__(self) -> Self:
        self._listen.unlink(missing_ok=True)
        arguments = ["--read-only", "--persistent", f"--shared={_CLIENTS}", f"--socket={self._listen}"]
        # Nobody else ends a server of a killed agent.
        command = ["prlimit", f"--as={_MEMORY}", "--core=0", "setpriv", "--pdeathsig", "KILL", "qemu-nbd", *arguments]
        command.append(self._image.node(self.export.size))
        try:
            self._server = subprocess.Popen(
                command,
                pass_fds=(self._image.fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
            )
            self._until(self._answers)
        except FileNotFoundError as error:
            self.close()
            hint = "apt install qemu-utils util-linux"
            text = f"{error.filename} is not installed on the replica"
            raise HypervisorError("seed-tool-failed", text, hint=hint, kind="operator") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server; again is harmless."""
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            server.wait()
        self._complaints.close()
        self._listen.unlink(missing_ok=True)

    def _until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if self._server is not None and self._server.poll() is not None:
                raise self._refused()
            if time.monotonic() > deadline:
                text = f"qemu-nbd over {self._image.name} did not begin within {_START_SECONDS:.0f} s"
                raise TimedOut("seed-tool-failed", text, hint="look at the load of the replica's host")
            time.sleep(_GLANCE)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._listen))
            except OSError:
                return False
            return True

    def _refused(self) -> Corrupt:
        self._complaints.seek(0)
        said = self._complaints.read(_MESSAGE).decode(errors="replace").strip()
        text = said.replace(f"/proc/self/fd/{self._image.fd}", self._image.name)
        return Corrupt(
            "seed-not-an-image",
            f"qemu-nbd cannot serve {self._image.name}: {text}",
            hint=f"`qemu-img check {self._image.name}` tells more; restore it again, or seed with --seed network",
        )

"""Just enough of the cpio format ("newc") to make an initramfs with a console node in it, without being root."""

import stat
from typing import Final

_MAGIC: Final = "070701"
_ALIGN: Final = 4
_CONSOLE: Final = (5, 1)


class Archive:
    """An archive under construction; add directories before what lies in them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._entries = 0

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._add(name, stat.S_IFDIR | 0o755, b"", (0, 0))

    def file(self, name: str, content: bytes, mode: int) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, content, (0, 0))

    def console(self, name: str) -> None:
        """Add the console's character device: the kernel opens it for init."""
        self._add(name, stat.S_IFCHR | 0o600, b"", _CONSOLE)

    def finish(self) -> bytes:
        """Close the archive and give its bytes."""
        self._add("TRAILER!!!", 0, b"", (0, 0))
        return bytes(self._data)

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int]) -> None:
        self._entries += 1
        encoded = name.encode() + b"\0"
        fields = (self._entries, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._data += (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode()
        self._data += encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % _ALIGN)

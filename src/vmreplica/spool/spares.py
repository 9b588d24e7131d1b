"""Files of segments that were sent, kept to be written over: fresh pages cost four times what the copying does."""

import threading
from pathlib import Path
from typing import Final

#: As many as usually leave the spool before the next segment comes.
_MOST: Final = 2


class Spares:
    """Of one disk's directory; thread-safe. What a killed process leaves is removed as any unfinished file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._kept: list[Path] = []
        self._wanted = True
        self._count = 0

    def keep(self, path: Path) -> None:
        """Keep a file that nobody needs, or remove it when there are enough."""
        with self._lock:
            if not self._wanted or len(self._kept) >= _MOST:
                path.unlink()
                return
            self._count += 1
            spare = self._directory / f".spare-{self._count}.tmp"
            path.rename(spare)
            self._kept.append(spare)

    def take(self) -> Path | None:
        """Give a file away to be written over; None: there is none."""
        with self._lock:
            return self._kept.pop() if self._kept else None

    def drop(self) -> bool:
        """Remove them all: their room is needed; tells whether there were any."""
        with self._lock:
            kept, self._kept = self._kept, []
        for path in kept:
            path.unlink(missing_ok=True)
        return bool(kept)

    def end(self) -> None:
        """Remove them all and keep no more: nothing more will be written."""
        with self._lock:
            self._wanted = False
        self.drop()

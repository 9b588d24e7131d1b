"""Programs of this machine for the lab's guest: each with the libraries it needs, in an archive for its kernel."""

import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Final

from vmreplica.lab.commands import run, search_path
from vmreplica.lab.cpio import Archive

_LIBRARY: Final = re.compile(r"(?:=> )?(/\S+) \(0x")


def installed(program: str) -> Path | None:
    """Tell where a program is installed; None if it is not."""
    found = shutil.which(program, path=search_path())
    return Path(found) if found else None


def script(name: str) -> bytes:
    """Give one of the guest's own scripts."""
    return resources.files("vmreplica.lab").joinpath(f"guest/{name}").read_bytes()


def pack_program(archive: Archive, program: Path) -> None:
    """Put a program with its libraries and their loader into an archive."""
    for directory in ("bin", "lib", "lib64", "usr", "usr/sbin"):
        archive.directory(directory)
    archive.file(f"usr/sbin/{program.name}", program.read_bytes(), 0o755)
    for library in sorted(set(map(Path, _LIBRARY.findall(run(["ldd", str(program)]).stdout)))):
        place = "lib64" if library.name.startswith("ld-") else "lib"
        archive.file(f"{place}/{library.name}", library.read_bytes(), 0o755)

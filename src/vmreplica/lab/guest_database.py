"""A database in the lab's guest: SQLite on an ext4 disk of its own, written to for ever, checked at each boot."""

import os
import tempfile
from pathlib import Path
from typing import Final

from vmreplica.lab.commands import run
from vmreplica.lab.cpio import Archive
from vmreplica.lab.guest_programs import installed, pack_program, script
from vmreplica.lab.qemu_img import raw_to_qcow2
from vmreplica.model.units import MiB

SQLITE: Final = "sqlite3"
_SIZE: Final = 48 * MiB
#: The last two are for a Debian with another database, before it takes over.
_SCRIPTS: Final = ("database", "debian-init", "fsfreeze-hook")


def database_archive() -> bytes:
    """Make an archive that is unpacked over the guest's root; it is empty if SQLite's shell is not installed."""
    program, archive = installed(SQLITE), Archive()
    if program is not None:
        pack_program(archive, program)
        for name in _SCRIPTS:
            archive.file(f"bin/{name}", script(name), 0o755)
    return archive.finish()


def make_database_disk(image: Path) -> None:
    """Make the database's disk as a qcow2 image with an empty file system."""
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".making-") as scratch:
        raw = Path(scratch) / "database.raw"
        raw.touch()
        os.truncate(raw, _SIZE)
        run(["mke2fs", "-q", "-t", "ext4", str(raw)])
        raw_to_qcow2(raw, image, _SIZE)

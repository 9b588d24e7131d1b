"""A Debian guest with PostgreSQL and the guest agent: its root disk, made by mmdebstrap from this machine's sources.

It is booted by the lab's kernel, which brings its init and its hook along. Making it takes minutes and the network; the
result is kept in the lab's cache.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmreplica.lab.commands import run
from vmreplica.lab.guest_programs import installed
from vmreplica.lab.qemu_img import raw_to_qcow2
from vmreplica.model.errors import Refused
from vmreplica.model.units import GiB

_PACKAGES: Final = ("postgresql", "qemu-guest-agent")
_SIZE: Final = 2 * GiB
#: Raise it when the way of building changes without a change of the packages.
_RECIPE: Final = b"1"
_LIMIT: Final = 1800.0


def debian_image(say: Callable[[str], None], cache: Path) -> Path:
    """Give the root disk (qcow2), building it when it is not in the cache.

    Raises:
        Refused: mmdebstrap is not installed (code ``lab-needs-tools``).
    """
    suite = _suite()
    final = cache / f"debian-{suite}-{_recipe_hash()}.qcow2"
    if final.exists():
        return final
    if installed("mmdebstrap") is None:
        raise Refused("lab-needs-tools", "mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    say(f"building a guest of {suite} with PostgreSQL (once, takes minutes)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
        _build(Path(scratch), suite).rename(final)
    return final


def _build(scratch: Path, suite: str) -> Path:
    root, raw, image = scratch / "root", scratch / "root.raw", scratch / "root.qcow2"
    wanted = f"--include={','.join(_PACKAGES)}"
    run(["mmdebstrap", "-q", "--variant=minbase", wanted, suite, str(root), *_sources()], timeout=_LIMIT)
    raw.touch()
    os.truncate(raw, _SIZE)
    run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw)], timeout=_LIMIT)
    raw_to_qcow2(raw, image, _SIZE)
    return image


def _sources() -> list[str]:
    """Name this machine's own package sources."""
    listed = Path("/etc/apt/sources.list.d").iterdir()
    parts = sorted(path for path in listed if path.suffix in {".sources", ".list"})
    return [str(path) for path in (Path("/etc/apt/sources.list"), *parts) if path.exists()]


def _suite() -> str:
    fields = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    return next(value.strip('"') for key, _, value in fields if key == "VERSION_CODENAME")


def _recipe_hash() -> str:
    return hashlib.sha256(_RECIPE + ",".join(_PACKAGES).encode()).hexdigest()[:16]

"""A Debian guest with PostgreSQL and the guest agent: its root disk, made by mmdebstrap from this machine's sources.

It is booted by the lab's kernel. Making it takes minutes and the network; the result is kept in the lab's cache.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmreplica.lab.commands import run
from vmreplica.lab.guest_programs import installed, script
from vmreplica.lab.qemu_img import raw_to_qcow2
from vmreplica.model.errors import Refused
from vmreplica.model.units import GiB

_PACKAGES: Final = ("postgresql", "qemu-guest-agent")
_SIZE: Final = 2 * GiB
_SCRIPTS: Final = {"debian-init": "lab-init", "fsfreeze-hook": "etc/qemu/fsfreeze-hook"}
#: Raise it when the way of building changes without a change of the guest's scripts.
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
    for name, place in _SCRIPTS.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(script(name))
        path.chmod(0o755)
    raw.touch()
    os.truncate(raw, _SIZE)
    run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw)], timeout=_LIMIT)
    raw_to_qcow2(raw, image, _SIZE)
    return image


def _sources() -> list[str]:
    """Name this machine's own package sources."""
    parts = sorted(Path("/etc/apt/sources.list.d").glob("*.sources")) + sorted(
        Path("/etc/apt/sources.list.d").glob("*.list")
    )
    return [str(path) for path in (Path("/etc/apt/sources.list"), *parts) if path.exists()]


def _suite() -> str:
    fields = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    return next(value.strip('"') for key, _, value in fields if key == "VERSION_CODENAME")


def _recipe_hash() -> str:
    digest = hashlib.sha256(_RECIPE)
    for name in _SCRIPTS:
        digest.update(script(name))
    return digest.hexdigest()[:16]

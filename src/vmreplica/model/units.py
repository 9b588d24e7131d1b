"""Sizes in bytes, durations in seconds, and their spelling for people and configuration files."""

import re
from typing import Final

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
TiB: Final = 1024 * GiB

#: Guest bytes per qcow2 cluster; the grain of libvirt's dirty bitmaps and of our compressed frames.
CLUSTER: Final = 64 * KiB

_SIZE = re.compile(r"(\d{1,15})\s*(B|[KMGT](?:iB)?|)", re.IGNORECASE)
_SIZE_FACTORS: Final = {"": 1, "b": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB}
_DURATION = re.compile(r"(\d{1,9})\s*(s|m|h|d|)")
_DURATION_FACTORS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(text: str) -> int:
    """Read a size such as ``512M``, ``2GiB`` or ``4096`` (powers of 1024) into bytes.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512M or 20GiB")
    return int(match[1]) * _SIZE_FACTORS[match[2].lower()[:1]]


def parse_duration(text: str) -> int:
    """Read a duration such as ``30s``, ``5m``, ``12h`` or ``300`` into seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 5m or 12h")
    return int(match[1]) * _DURATION_FACTORS[match[2]]


def format_size(size: float) -> str:
    """Spell bytes for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:  # noqa: PLR2004 - the base of the units
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Spell seconds for people: ``45s``, ``5m``, ``2h 10m``, ``3d 4h``."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (secs, "s")]
    shown = [f"{value}{unit}" for value, unit in parts if value][:2]
    return " ".join(shown) or "0s"

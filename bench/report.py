"""``build/bench.json``: how figures become measures, and measures a report."""

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
Measure = dict[str, Any]


def measure(*, ours: Figures, peer: str, theirs: Figures, ratio: float, goal: float, **more: Any) -> Measure:
    """Put one measure together; it holds when the ratio is at most the goal.

    Args:
        ours: our figures.
        peer: the peer's name.
        theirs: the peer's figures.
        ratio: ours to theirs, or to what is allowed; smaller is better. bench/README.md says which.
        goal: the largest ratio that holds.
        more: further ratios, each with a goal: ``wire_ratio=..., wire_goal=...``.
    """
    others = [name.removesuffix("_ratio") for name in more if name.endswith("_ratio")]
    holds = ratio <= goal and all(more[f"{name}_ratio"] <= more[f"{name}_goal"] for name in others)
    rounded = {name: round(value, 3) for name, value in more.items()}
    return {"ours": dict(ours), peer: dict(theirs), "ratio": round(ratio, 3), "goal": goal, **rounded, "holds": holds}


def middle(values: Sequence[float]) -> float:
    """Give the median, rounded to a tenth of a millisecond."""
    return round(statistics.median(values), 4)


def spread(values: Sequence[float]) -> list[float]:
    """Give the single values, so that a reader can see how much they differ."""
    return [round(value, 4) for value in values]


def with_left_out(measured: Mapping[str, Measure], last_full: Path) -> dict[str, Measure]:
    """Add the measures that this run left out, from the last full run, each saying so in ``from``."""
    if not last_full.exists():
        return dict(measured)
    earlier = json.loads(last_full.read_text())
    when = earlier["machine"]["date"]
    carried = {
        name: {**figures, "from": f"full run of {when}"}
        for name, figures in earlier["measures"].items()
        if name not in measured
    }
    return {**measured, **carried}


def machine() -> dict[str, Any]:
    """Describe the machine that the figures belong to."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _version("qemu-img", "--version"),
        "libvirt": _version("libvirtd", "--version"),
        "nbdcopy": _version("nbdcopy", "--version"),
    }


def table(measures: Mapping[str, Measure]) -> str:
    """Show the measures in one line each."""
    lines = []
    for name, one in measures.items():
        verdict = "holds" if one["holds"] else "DOES NOT HOLD"
        source = f" ({one['from']})" if "from" in one else ""
        lines.append(f"{name:15} ratio {one['ratio']:.2f}, goal {one['goal']}: {verdict}{source}")
    return "\n".join(lines)


def _field(path: Path, name: str) -> str:
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for key, _, value in rows if key.strip() == name), "unknown")


def _version(*command: str) -> str:
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next((word for word in said.split() if word[0].isdigit()), "unknown").rstrip(",")

"""Sums of runs, for metrics. No logic."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class VmTotals:
    """Sums of one VM's runs on one side since the agent's start."""

    #: By kind of point and outcome.
    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    guest_bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0
    #: Seconds by what was waited for: queue, limit, base.
    waiting: dict[str, float] = field(default_factory=dict)

"""When a file system will be full, from what was free on it lately. Pure."""

from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Final

#: Seconds that are looked back, and that must have been seen at least.
WINDOW: Final = 3 * 86400.0
LEAST_SEEN: Final = 2 * 3600.0
#: Buckets that the window is thinned out to: the fit compares each with each.
_BUCKETS: Final = 72
_LEAST_BUCKETS: Final = 4
#: How many times the seen time a forecast reaches at most.
_REACH: Final = 30.0


def full_in(samples: Sequence[tuple[float, float]], floor: float) -> float | None:
    """Tell in how many seconds, counted from the last sample, no more than ``floor`` will be free.

    A line is fitted through the samples: the median of the slopes between all pairs (Theil and Sen), which a single
    large copy, or a clean-up, does not bend as it would a least-squares fit.

    Args:
        samples: seconds of some clock and bytes that were free then, oldest first.
        floor: bytes that stay free.

    Returns:
        None: it does not shrink, or too little was seen to tell.
    """
    if not samples:
        return None
    recent = [sample for sample in samples if sample[0] >= samples[-1][0] - WINDOW]
    seen = recent[-1][0] - recent[0][0]
    thinned = _thinned(recent)
    if seen < LEAST_SEEN or len(thinned) < _LEAST_BUCKETS:
        return None
    pairs = combinations(thinned, 2)
    slope = median((later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in pairs)
    if slope >= 0:
        return None
    left = max(0.0, recent[-1][1] - floor) / -slope
    return left if left <= _REACH * seen else None


def _thinned(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the last sample of each bucket, so that times differ and there are few of them."""
    width = WINDOW / _BUCKETS
    buckets = {int(when // width): (when, free) for when, free in samples}
    if len(buckets) < _LEAST_BUCKETS:
        width = LEAST_SEEN / _LEAST_BUCKETS
        buckets = {int(when // width): (when, free) for when, free in samples}
    return list(buckets.values())

"""Arithmetic of limited sending: a token bucket, and the fair division of one rate. Pure: time is always given."""

from collections.abc import Mapping
from typing import Final, TypeVar

from vmreplica.model.units import KiB

_Key = TypeVar("_Key")

#: Seconds of sending that a bucket holds: a thread that wakes late catches up, within it.
_BURST: Final = 0.5
#: Seconds of sending let through in one go, within these bytes: the line is used evenly, and a change seen soon.
_SLICE: Final = 0.1
_SMALLEST, _LARGEST = KiB, 256 * KiB


class Bucket:
    """Grants bytes at a rate: in any time not more than the rate times it, and a burst of half a second.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.rate: float | None = None
        self._at = now
        self._tokens = 0.0

    @property
    def burst(self) -> float:
        """Bytes that may be granted at once after a rest; of no meaning without a rate."""
        return max(self._slice, _BURST * (self.rate or 0.0))

    @property
    def _slice(self) -> int:
        return int(min(max(_SLICE * (self.rate or 0.0), _SMALLEST), _LARGEST))

    def change(self, rate: float | None, now: float) -> None:
        """Set another rate, from now on, in bytes per second; None: no limit."""
        self._refill(now)
        if rate is not None and self.rate is None:
            # What was sent without a limit was not counted: nothing was saved up.
            self._tokens = 0.0
        self.rate = rate
        if rate is not None:
            self._tokens = min(self._tokens, self.burst)

    def take(self, most: int, now: float) -> int:
        """Grant up to so many bytes; 0: not yet."""
        if self.rate is None:
            return most
        self._refill(now)
        granted = min(most, self._slice)
        if self._tokens < granted:
            return 0
        self._tokens -= granted
        return granted

    def wait(self, most: int) -> float:
        """Tell how many seconds after the last ``take`` the next one can succeed."""
        if self.rate is None:
            return 0.0
        return max(0.0, min(most, self._slice) - self._tokens) / self.rate

    def _refill(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        if self.rate is not None:
            self._tokens = min(self.burst, self._tokens + passed * self.rate)


def fair_shares(total: float | None, limits: Mapping[_Key, float | None]) -> dict[_Key, float | None]:
    """Divide a rate: each gets the same, unless its own limit is lower; what that leaves is divided among the others.

    Args:
        total: to be divided; None: there is no end of it.
        limits: of each by itself; None: none.
    """
    if total is None:
        return dict(limits)
    shares: dict[_Key, float | None] = {}
    left = total
    by_limit = sorted(limits, key=lambda key: float("inf") if (limit := limits[key]) is None else limit)
    for done, key in enumerate(by_limit):
        equal = left / (len(by_limit) - done)
        limit = limits[key]
        share = equal if limit is None else min(limit, equal)
        shares[key] = share
        left -= share
    return shares

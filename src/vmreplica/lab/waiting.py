"""Waiting for a condition, with a limit."""

import time
from collections.abc import Callable
from typing import Final

_TICK: Final = 0.05
_GRACE: Final = 1.0


def _always() -> bool:
    return True


def until(condition: Callable[[], bool], limit: float, *, while_: Callable[[], bool] = _always) -> bool:
    """Wait until a condition holds; tell whether it came to that.

    Args:
        condition: asked twenty times a second.
        limit: seconds.
        while_: when this no longer holds (after a second's grace), waiting is in vain.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        if waited > limit or (waited > _GRACE and not while_()):
            return False
        time.sleep(_TICK)
    return True

"""The heap of glibc in a process of many threads that handle buffers of megabytes: few arenas, nothing hoarded."""

import asyncio
import ctypes
import gc
from typing import Final

from vmreplica.model.units import MiB

#: Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: Seconds between two times that freed memory is given back.
_EVERY: Final = 15.0


def bound_heap() -> None:
    """Keep freed buffers of many threads from adding up: few arenas, large blocks given back at once (mallopt(3)).

    Every stage handles buffers of megabytes in threads of its own; glibc would keep a heap for each of them.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, 4 * MiB)
        libc.mallopt(_M_TRIM_THRESHOLD, 32 * MiB)


async def tend_heap() -> None:
    """Give back what was freed, again and again (malloc_trim(3)); ends when it is cancelled.

    Pages between blocks that are in use stay with the process otherwise: each kind of work adds what it needed most.
    Circles of objects are looked for first. The traceback of a failure is one, with all the buffers of its frames, and
    Python by itself looks for old ones after thousands of objects, however large they are.
    """
    libc = ctypes.CDLL(None)
    # What the start has made stays: looking through all of it each time would hold everybody up.
    gc.collect()
    gc.freeze()
    while True:
        await asyncio.sleep(_EVERY)
        await asyncio.to_thread(_give_back, libc)


def _give_back(libc: ctypes.CDLL) -> None:
    gc.collect()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)

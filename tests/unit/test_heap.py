"""Memory that was freed goes back to the system, also where blocks that are in use lie between, or in circles."""

import subprocess
import sys

import pytest

_PROGRAM = """
import asyncio, gc, sys
from pathlib import Path
from vmreplica.api import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def between_blocks_in_use():
    large = []
    for _ in range(1000):
        large.append(bytearray(100_000))
        small.append(bytearray(1000))

def in_circles():
    for _ in range(50):
        circle = [bytearray(1_000_000)]
        circle.append(circle)

async def taken_and_given_back():
    tending = asyncio.create_task(heap.tend_heap())
    await asyncio.sleep(0.05)
    start = resident()
    gc.disable()  # else it depends on how many objects there are when circles are looked for
    globals()[sys.argv[1]]()
    before = resident()
    await asyncio.sleep(1)
    tending.cancel()
    print(before - start, before - resident())

heap.bound_heap()
heap._EVERY = 0.2
small = []
asyncio.run(taken_and_given_back())
"""


@pytest.mark.parametrize("freed", ["between_blocks_in_use", "in_circles"])
def test_what_was_freed_is_given_back(freed: str) -> None:
    program = [sys.executable, "-c", _PROGRAM, freed]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    taken, given_back = map(int, ran.stdout.split())
    assert taken > 45_000_000
    assert given_back > 45_000_000

"""Memory that was freed goes back to the system, also where blocks that are in use lie between."""

import subprocess
import sys

_PROGRAM = """
import asyncio, contextlib
from pathlib import Path
from vmreplica.api import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

heap.bound_heap()
large, small = [], []
for _ in range(1000):
    large.append(bytearray(100_000))
    small.append(bytearray(1000))
large.clear()
before = resident()
heap._EVERY = 0.1

async def tended():
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(heap.tend_heap(), 1)

asyncio.run(tended())
print(before - resident())
"""


def test_what_was_freed_between_blocks_in_use_is_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert int(ran.stdout) > 50_000_000

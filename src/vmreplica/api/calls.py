"""Calls of the blocking facade from the event loop, on a bounded number of threads with a bounded queue."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from vmreplica.model.errors import Unreachable

_Result = TypeVar("_Result")

THREADS: Final = 16
MAX_PENDING: Final = 128


class Calls:
    """Threads for the facade; a caller that goes away does not stop its call."""

    def __init__(self, *, threads: int = THREADS, max_pending: int = MAX_PENDING) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="api")
        self._max_pending = max_pending
        self._pending = 0

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Run a call in a thread and hand back its result or error.

        Raises:
            Unreachable: too many calls are waiting already.
        """
        if self._pending >= self._max_pending:
            raise Unreachable(
                "agent-busy", f"the agent has {self._pending} requests waiting", hint="try again in a moment"
            )
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        future.add_done_callback(self._finished)
        return await asyncio.shield(future)

    def close(self) -> None:
        """Let no new call begin; those that run come to their end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _finished(self, _future: object) -> None:
        self._pending -= 1

"""Work done by several threads, taken in its own order, with a bounded number of results in flight."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    tasks: Iterable[Task], work: Callable[[Task], Result], workers: int, failed: threading.Event
) -> Generator[tuple[Task, Result], None, None]:
    """Do tasks in threads; at most twice as many results as threads are in flight or waiting.

    Args:
        tasks: asked for one by one, from the caller's thread.
        work: done in a thread.
        workers: how many threads.
        failed: set when the first task failed or the caller stopped taking, for the work under way to give up.

    Raises:
        Exception: whatever the first failed task raised; no thread runs any more then.
    """
    flying: deque[tuple[Task, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="capture") as pool:
        try:
            for task in tasks:
                flying.append((task, pool.submit(work, task)))
                if len(flying) >= 2 * workers:
                    yield _take(flying)
            while flying:
                yield _take(flying)
        except BaseException:
            failed.set()
            for _, future in flying:
                future.cancel()
            raise


def _take(flying: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    task, future = flying.popleft()
    return task, future.result()

"""A process that applies retention and is killed with SIGKILL at a step: ``merge_killed.py STORE VM STEP``."""

import os
import signal
import sys
from pathlib import Path

from repository_kit import open_repository


def main() -> None:
    """Do it."""
    store, vm, wanted = sys.argv[1:]
    replica = open_repository(Path(store)).replica(vm)

    def die(step: str) -> None:
        if step == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    replica.before_fold_step = die
    replica.apply_retention()


if __name__ == "__main__":
    main()

"""The real agent, which kills itself with SIGKILL just before a named step of a failover, of whatever kind.

``killed_failover.py STEP --config FILE``; the steps are those that ``failover.execute``, ``failover.tests``,
``failover.booting``, ``failover.commit`` and ``agent.planned_run`` tell their observers.
"""

import functools
import os
import signal
import sys
from pathlib import Path

from vmreplica.agent import agent, replica
from vmreplica.api.daemon import run


def main() -> None:
    """Watch the steps, run the agent."""
    fatal, _, config = sys.argv[1:]

    def before(step: str) -> None:
        if step == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    vars(replica)["FailoverTests"] = functools.partial(vars(replica)["FailoverTests"], before=before)
    vars(replica)["BootTesting"] = functools.partial(vars(replica)["BootTesting"], before=before)
    vars(replica)["Commits"] = functools.partial(vars(replica)["Commits"], before=before)
    vars(replica)["execute"] = functools.partial(vars(replica)["execute"], before=before)
    vars(agent)["make_planned"] = functools.partial(vars(agent)["make_planned"], before=before)
    run(Path(config))


if __name__ == "__main__":
    main()

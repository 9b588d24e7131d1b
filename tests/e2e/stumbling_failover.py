"""The real agent, on whose libvirt each VM's plug can be pulled only at the second attempt.

``stumbling_failover.py --config FILE``.
"""

import sys
from pathlib import Path

from vmreplica.agent import agent
from vmreplica.api.daemon import run
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import TimedOut
from vmreplica.model.ids import VmId


class Stumbling(Hypervisor):
    """The real one, but for every other stop."""

    stops = 0

    def stop(self, vm: VmId) -> None:
        """Fail, then do it."""
        self.stops += 1
        if self.stops % 2:
            raise TimedOut("libvirt-timeout", "libvirt did not stop it in time", hint="try again")
        super().stop(vm)


def main() -> None:
    """Run the agent on such a libvirt."""
    _, config = sys.argv[1:]
    vars(agent)["Hypervisor"] = Stumbling
    run(Path(config))


if __name__ == "__main__":
    main()

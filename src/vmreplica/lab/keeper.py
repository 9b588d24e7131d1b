"""Becomes the first process of a host's namespaces: mounts, then sleeps, reaping orphans. Its death ends the host.

Run as a script, with one JSON argument, by ``unshare``; imports nothing of the product, for it starts once per host and
holds no memory afterwards: it turns into ``sleep``.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def mount(*argv: str) -> None:
    """Call the program mount."""
    subprocess.run(["mount", *argv], check=True)


def main() -> None:
    """Set the namespaces up as told, say so in the pid file, and become ``sleep``."""
    spec = json.loads(sys.argv[1])
    # /proc is still the outer one: this is our number among the machine's processes.
    pid = int(Path("/proc/self/stat").read_text().split()[0])
    mount("-t", "proc", "proc", "/proc")
    if spec["binds"]:
        subprocess.run(["umount", "-l", "/sys"], check=False)
        mount("-t", "sysfs", "sysfs", "/sys")
    for hidden in spec["hidden"]:
        mount("-t", "tmpfs", "-o", "size=4k,mode=0555", "tmpfs", hidden)
    for source, target in spec["binds"].items():
        mount("--bind", source, target)
    for source, target in spec["read_only"].items():
        mount("--bind", source, target)
        mount("-o", "remount,bind,ro", target)
    subprocess.run(["hostname", spec["name"]], check=False)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Ignored over exec: the kernel then reaps the orphans that end here, or libvirt would wait for its dead QEMUs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    Path(spec["pid_file"]).write_text(f"{pid}\n")
    os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()

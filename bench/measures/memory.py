"""Peak memory of both agents over the whole run, the last part of which is a disk of 1 TiB."""

import shutil
import subprocess

from bench.content import WORKING, system_disk
from bench.hosts import peak_memory
from bench.lab import BenchLab
from bench.peers.nbdcopy import TlsCopy
from bench.report import Measure, measure

MiB = 1 << 20
LIMIT = 200 * MiB
_GUEST = "memory"
_SIZE = 1 << 40


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Replicate a huge disk, look at the most that each agent has ever had; the peer copies the same disk."""
    del quick  # left out there
    huge = WORKING / "huge.qcow2"
    shutil.copyfile(system_disk(size=2048 * MiB, used=1536 * MiB), huge)
    subprocess.run(["qemu-img", "resize", "-q", huge, str(_SIZE)], check=True)
    lab.add_guest(_GUEST, content=huge)
    huge.unlink()
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h")
    lab.primary.vmreplica("sync", _GUEST)
    ours = {"primary": peak_memory(lab.primary.agent_pid()), "replica": peak_memory(lab.replica.agent_pid())}
    theirs = TlsCopy(lab.primary, lab.replica).copy_disk(_GUEST, "vdb", _SIZE)
    return measure(
        ours={"primary_peak_bytes": ours["primary"], "replica_peak_bytes": ours["replica"], "disk_bytes": _SIZE},
        peer="nbdcopy_tls",
        theirs={
            "primary_peak_bytes": theirs.sender_peak_bytes,
            "replica_peak_bytes": theirs.receiver_peak_bytes,
            "allowed_bytes": LIMIT,
        },
        ratio=max(ours.values()) / LIMIT,
        goal=1.0,
    )

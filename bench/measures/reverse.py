"""The bytes that replication back to the old primary costs, after a planned and after an unplanned failover."""

from pathlib import Path

from bench.backup import disks
from bench.content import system_disk
from bench.hosts import sent_bytes, virsh
from bench.lab import BenchLab
from bench.report import Measure, measure
from bench.writes import BLOCK, scattered, write_blocks

MiB = 1 << 20
_SIZE = 256 * MiB
#: Most bytes that both hosts send, as a part of the distinct bytes that either side changed since the common point.
_ALLOWED = 1.2


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Move a guest to the replica and back into replication; then lose another one's primary and do the same."""
    planned = _after_planned(lab)
    sent, changed = _after_unplanned(lab, writes=1500 if quick else 6000)
    return measure(
        ours={"wire_bytes": sent, "planned_data_bytes": planned, "disk_bytes": _SIZE},
        peer="changed",
        theirs={"bytes": changed, "allowed_bytes": int(changed * _ALLOWED)},
        ratio=sent / changed,
        goal=_ALLOWED,
        planned_ratio=planned / BLOCK,
        planned_goal=0.0,
    )


def _after_planned(lab: BenchLab) -> int:
    """Tell the data bytes of all cycles that the new primary ran until the old one had a point of its own."""
    guest = "reverse-planned"
    lab.add_guest(guest, content=_content())
    lab.primary.vmreplica("enable", guest, "--to", lab.replica.name, "--every", "24h")
    lab.replica.vmreplica("failover", guest, "--planned", "--yes")
    back = lab.swapped()
    cycle = back.cycle(guest, "delta")
    for target in disks(back.primary, guest):
        back.require_equal(guest, target, cycle.point)
    cycles = back.primary.vmreplica("history", guest, "--limit", "100")["cycles"]
    back.give_up(guest)
    return sum(int(one["wire_bytes"]) for one in cycles)


def _after_unplanned(lab: BenchLab, *, writes: int) -> tuple[int, int]:
    """Let both sides write what the other one never gets; tell the bytes that both sent then, and those changed."""
    guest, back = "reverse-unplanned", lab.swapped()
    lab.add_guest(guest, content=_content())
    # Without the disk that it boots from the guest comes up on the replica and writes nothing but what is asked for.
    lab.primary.vmreplica("enable", guest, "--to", lab.replica.name, "--every", "24h", "--exclude-disk", "vda")
    mine, theirs = (scattered([(0, _SIZE)], writes, grain=BLOCK, seed=seed) for seed in (1, 2))
    lab.lab.cut(lab.primary.name, lab.replica.name)
    write_blocks(lab.primary, guest, "vdb", mine)
    virsh(lab.primary, "destroy", guest)
    lab.replica.vmreplica("failover", guest, "--yes")
    write_blocks(lab.replica, guest, "vdb", theirs)
    before = sent_bytes(lab.primary) + sent_bytes(lab.replica)
    lab.lab.heal(lab.primary.name, lab.replica.name)
    cycle = lab.replica.vmreplica("reverse", guest, "--yes")["result"]
    sent = sent_bytes(lab.primary) + sent_bytes(lab.replica) - before
    back.require_equal(guest, "vdb", cycle["point"])
    back.give_up(guest)
    return sent, len({*mine, *theirs}) * BLOCK


def _content() -> Path:
    return system_disk(size=_SIZE, used=128 * MiB)

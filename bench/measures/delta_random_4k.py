"""Small random writes of bytes that do not compress, beside what libvirt's bitmap says of them."""

import json
import subprocess

from bench.backup import checkpoint, frozen_view
from bench.content import system_disk
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread
from bench.writes import BLOCK, scattered, write_blocks

MiB = 1 << 20
_GUEST = "random4k"
_SIZE = 1024 * MiB
_CLUSTER = 64 * 1024


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Write and run a cycle several times; after each writing the peer's bitmap is asked."""
    writes = 1000 if quick else 4000
    lab.add_guest(_GUEST, content=system_disk(size=_SIZE, used=512 * MiB))
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h", "--exclude-disk", "vda")
    ours: list[int] = []
    theirs: list[int] = []
    for number in range(3):
        with checkpoint(lab.primary, _GUEST, "vdb") as since:
            offsets = scattered([(0, _SIZE)], writes, grain=_CLUSTER, seed=number)
            write_blocks(lab.primary, _GUEST, "vdb", offsets)
            theirs.append(_marked_bytes(lab, since))
            cycle = lab.cycle(_GUEST, "delta")
            lab.require_equal(_GUEST, "vdb", cycle.point)
            ours.append(cycle.wire_bytes)
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    changed_bytes = writes * BLOCK
    return measure(
        ours={"wire_bytes": int(middle(ours)), "all_wire_bytes": spread(ours), "changed_bytes": changed_bytes},
        peer="libvirt_bitmap",
        theirs={"marked_bytes": int(middle(theirs)), "all_marked_bytes": spread(theirs)},
        ratio=middle(ours) / changed_bytes,
        goal=1.15,
    )


def _marked_bytes(lab: BenchLab, since: str) -> int:
    """Ask what a tool that reads what the bitmap marks has to send."""
    with frozen_view(lab.primary, _GUEST, "vdb", since=since) as socket:
        what = ["--map=qemu:dirty-bitmap:backup-vdb", f"nbd+unix:///vdb?socket={socket}"]
        said = subprocess.run(["nbdinfo", "--json", *what], check=True, capture_output=True, timeout=120).stdout
    return sum(extent["length"] for extent in json.loads(said) if extent["type"] == 1)

"""Initial replication of a disk of ordinary system files, beside nbdcopy over TLS of the same disk."""

from dataclasses import dataclass

from bench.content import system_disk
from bench.hosts import sent_bytes
from bench.lab import BenchLab
from bench.peers.nbdcopy import Copied, TlsCopy
from bench.report import Measure, measure, middle, spread

MiB = 1 << 20
_GUEST = "initial"


@dataclass(frozen=True, slots=True)
class _Replicated:
    seconds: float
    wire_bytes: int


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Replicate the disk anew several times, in turns with the peer."""
    size, used, repetitions = (1280 * MiB, 768 * MiB, 3) if quick else (2048 * MiB, 1536 * MiB, 5)
    lab.add_guest(_GUEST, content=system_disk(size=size, used=used))
    peer = TlsCopy(lab.primary, lab.replica)
    ours: list[_Replicated] = []
    theirs: list[Copied] = []
    for number in range(repetitions):
        for our_turn in (True, False) if number % 2 else (False, True):
            if our_turn:
                ours.append(_replicate(lab))
            else:
                theirs.append(peer.copy_disk(_GUEST, "vdb", size))
    our_seconds, their_seconds = ([one.seconds for one in series] for series in (ours, theirs))
    our_bytes, their_bytes = (middle([one.wire_bytes for one in series]) for series in (ours, theirs))
    return measure(
        ours={
            "seconds": middle(our_seconds),
            "all_seconds": spread(our_seconds),
            "wire_bytes": int(our_bytes),
            "disk_bytes": size,
            "used_bytes": used,
        },
        peer="nbdcopy_tls",
        theirs={
            "seconds": middle(their_seconds),
            "all_seconds": spread(their_seconds),
            "wire_bytes": int(their_bytes),
        },
        ratio=middle(our_seconds) / middle(their_seconds),
        goal=1.0,
        wire_ratio=our_bytes / their_bytes,
        wire_goal=0.5,
    )


def _replicate(lab: BenchLab) -> _Replicated:
    before = sent_bytes(lab.primary)
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h", "--exclude-disk", "vda")
    sent = sent_bytes(lab.primary) - before
    cycles = lab.primary.vmreplica("history", _GUEST, "--limit", "5")["cycles"]
    # A delta may follow at once, and cycles of earlier turns are there too: newest first.
    cycle = next(one for one in cycles if one["kind"] == "initial")
    if cycle["outcome"] != "published":
        raise RuntimeError(f"the initial replication was not published: {cycle}")
    lab.require_equal(_GUEST, "vdb", cycle["point"])
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    return _Replicated(cycle["seconds"], sent)

"""One point at the replica, disk by disk, against what this host knows that it must hold.

Sums of 512 MiB travel first; only where they differ are the hashes of blocks asked for. What the replica cannot read
is narrowed down by halves.
"""

import datetime as dt
import threading
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from vmreplica.agent.meter import Meter
from vmreplica.fingerprint import BLOCK, BLOCKS_PER_CLUSTER, BlockSum, Fingerprint, Hashes, blocks_of, sum_blocks
from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.verified import MAX_RANGES, DiskVerdict, Proof, Verdict, Verified, WrongRange
from vmreplica.peer.proving import REGION_BLOCKS, RegionSums

#: Regions that one request is about: 2 GiB of disk.
_ASKED: Final = 4 * REGION_BLOCKS
#: Requests for narrowing down what cannot be read of one disk.
_PROBES: Final = 400
#: What the replica answers when QEMU cannot read an image.
_UNREADABLE: Final = "image-unreadable"

OF_REPLICA: Final = (
    "it is what the replica itself had told, which was not compared with the VM's disk since: "
    "vmreplica verify VM --repair compares all of it"
)
_NOT_READABLE: Final = "the replica cannot read all of it: vmreplica scrub VM, on the replica, names the places"
_NOT_WHERE: Final = "an older point is known by one sum for the whole disk only: nobody can tell where it differs"


class Source(Protocol):
    """Who holds the point: ``PeerClient``."""

    def keep_still(self, vm: VmId, point: PointId) -> None:
        """Let the point stay as it is for some minutes."""

    def sums(  # noqa: PLR0917 - in the order of the request's path
        self, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> RegionSums:
        """Sum up blocks."""
        ...

    def fingerprint(  # noqa: PLR0917 - in the order of the request's path
        self, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> Hashes:
        """Hash blocks."""
        ...


class Comparison:
    """For one point and one thread.

    Args:
        source: who holds it.
        vm: whose point.
        point: which one.
        meter: fed with progress.
        total: guest bytes that will be looked at in all.
        halt: gives up.
        rate: guest bytes that the replica shall read per second; None: as fast as it can.
    """

    def __init__(  # noqa: PLR0917 - all of them say what is compared and how
        self,
        source: Source,
        vm: VmId,
        point: PointId,
        meter: Meter,
        total: int,
        halt: threading.Event,
        rate: int | None,
    ) -> None:
        self._source = source
        self._vm = vm
        self._point = point
        self._meter = meter
        self._done, self._total = 0, total
        self._halt = halt
        self._rate = rate

    def by_blocks(self, target: DiskTarget, known: Fingerprint, proof: Proof | None) -> DiskVerdict:
        """Compare each block with the fingerprint of that very point.

        Args:
            target: the disk.
            known: its fingerprint, which stays as it is meanwhile.
            proof: what the fingerprint came to when the point was taken: tells a fingerprint that rotted since from a
                wrong replica. None: nobody knows.
        """
        wrong, read, total, all_read = Stretches(), 0, BlockSum(), True
        for first, count in _windows(blocks_of(known.size)):
            mine = known.hashes(first, count)
            found = self._sums(target, known.key, first, count)
            all_read = all_read and found is not None
            for place in range(0, count, REGION_BLOCKS):
                piece = mine[place : place + REGION_BLOCKS]
                told = BlockSum.of_text(found.sums[place // REGION_BLOCKS]) if found is not None else None
                total = total.plus(told or BlockSum())
                if told != sum_blocks(first + place, piece, known.key):
                    self._blocks(target, known.key, first + place, piece, wrong, _Budget(_PROBES))
            read += found.used * BLOCK if found is not None else 0
            self._progress(count)
        # What could not be read added nothing: over zeroes the total is right all the same, and proves nothing.
        proven = all_read and proof is not None and (proof.key, proof.sum) == (f"{known.key:016x}", total.text)
        if wrong and proven:
            why = "the replica is right; the fingerprint kept here was damaged and is made anew"
            return DiskVerdict(target=target, verdict="equal", how="sum", read_bytes=read, why=why)
        return _verdict(target, "blocks", wrong.ranges(known.size), read, own=known.own)

    def by_sum(self, target: DiskTarget, size: int, proof: Proof) -> DiskVerdict:
        """Compare all of a disk with the sum that was made when the point was taken."""
        key, total, read = int(proof.key, 16), BlockSum(), 0
        for first, count in _windows(blocks_of(size)):
            found = self._sums(target, key, first, count)
            if found is None:
                return _all_wrong(target, size, read, _NOT_READABLE)
            for text in found.sums:
                total = total.plus(BlockSum.of_text(text))
            read += found.used * BLOCK
            self._progress(count)
        if total.text != proof.sum:
            return _all_wrong(target, size, read, _NOT_WHERE)
        return _verdict(target, "sum", [], read, own=proof.own)

    def again(self, target: DiskTarget, known: Fingerprint, places: Sequence[WrongRange]) -> DiskVerdict:
        """Compare some stretches of a disk only, whole clusters around them."""
        wrong, read = Stretches(), 0
        for place in places:
            first = place.offset // BLOCK // BLOCKS_PER_CLUSTER * BLOCKS_PER_CLUSTER
            end = min(-(-(place.offset + place.length) // BLOCK), blocks_of(known.size))
            for start in range(first, end, _ASKED):
                mine = known.hashes(start, min(_ASKED, end - start))
                self._blocks(target, known.key, start, mine, wrong, _Budget(_PROBES))
                read += len(mine) * BLOCK
        return _verdict(target, "blocks", wrong.ranges(known.size), read, own=known.own)

    def _sums(self, target: DiskTarget, key: int, first: int, count: int) -> RegionSums | None:
        """Ask for sums; None when something of it cannot be read."""
        self._go_on()
        try:
            found = self._source.sums(self._vm, self._point, target, key, first, count)
        except Corrupt as error:
            if error.code != _UNREADABLE:
                raise
            return None
        if len(found.sums) != -(-count // REGION_BLOCKS):
            raise Corrupt("sums-differ", f"the replica answered {len(found.sums)} sums about {count} blocks")
        if self._rate:
            self._halt.wait(found.used * BLOCK / self._rate)
        return found

    def _blocks(  # noqa: PLR0917 - it calls itself with all of them
        self, target: DiskTarget, key: int, first: int, mine: Hashes, wrong: "Stretches", budget: "_Budget"
    ) -> None:
        """Compare blocks one by one; what cannot be read is halved until it is one cluster."""
        self._go_on()
        budget.left -= 1
        try:
            theirs = self._source.fingerprint(self._vm, self._point, target, key, first, len(mine))
        except Corrupt as error:
            if error.code != _UNREADABLE:
                raise
            clusters = -(-len(mine) // BLOCKS_PER_CLUSTER)
            if clusters <= 1 or budget.left <= 0:
                wrong.add(first, first + len(mine))
                return
            half = clusters // 2 * BLOCKS_PER_CLUSTER
            self._blocks(target, key, first, mine[:half], wrong, budget)
            self._blocks(target, key, first + half, mine[half:], wrong, budget)
            return
        edges = np.flatnonzero(np.diff(theirs != mine, prepend=False, append=False)).reshape(-1, 2)
        for low, high in edges.tolist():
            wrong.add(first + low, first + high)

    def _go_on(self) -> None:
        if self._halt.is_set():
            raise cancelled()
        self._source.keep_still(self._vm, self._point)

    def _progress(self, blocks: int) -> None:
        self._done = min(self._done + blocks * BLOCK, self._total)
        self._meter.read(self._done, self._total)


class _Budget:
    def __init__(self, left: int) -> None:
        self.left = left


class Stretches:
    """Stretches of blocks, ascending, joined where they touch; of too many the nearest become one."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, first: int, end: int) -> None:
        """Add one behind all others."""
        if self._found and self._found[-1][1] >= first:
            self._found[-1] = (self._found[-1][0], end)
        else:
            self._found.append((first, end))
        if len(self._found) > 2 * MAX_RANGES:
            self._found = coarse(self._found, MAX_RANGES)

    def ranges(self, size: int) -> list[WrongRange]:
        """Tell the bytes of a disk that they are."""
        return [
            WrongRange(offset=first * BLOCK, length=min(end * BLOCK, size) - first * BLOCK)
            for first, end in coarse(self._found, MAX_RANGES)
        ]


def coarse(stretches: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Bring stretches down to a number, by joining those that are nearest to each other.

    Args:
        stretches: (first, end), ascending and apart.
        most: how many there may be, at least 1.
    """
    surplus = len(stretches) - most
    if surplus <= 0:
        return list(stretches)
    gaps = sorted(range(1, len(stretches)), key=lambda place: stretches[place][0] - stretches[place - 1][1])
    joined, found = set(gaps[:surplus]), list(stretches[:1])
    for place in range(1, len(stretches)):
        if place in joined:
            found[-1] = (found[-1][0], stretches[place][1])
        else:
            found.append(stretches[place])
    return found


def summed_up(point: PointId, disks: Sequence[DiskVerdict], *, repaired: bool = False) -> Verified:
    """Make one verdict of those on the disks: the worst of them."""
    verdicts = {disk.verdict for disk in disks}
    right: Verdict = "repaired" if repaired else "equal"
    worst: Verdict = "wrong" if "wrong" in verdicts else "unproven" if "unproven" in verdicts or not disks else right
    return Verified(point=point, when=dt.datetime.now(dt.UTC), verdict=worst, disks=tuple(disks))


def again_possible(verified: Verified) -> bool:
    """Tell whether each disk that is not equal is known to be wrong in certain places: these can be brought again."""
    doubted = [disk for disk in verified.disks if disk.verdict != "equal"]
    return bool(doubted) and all(disk.wrong for disk in doubted)


def unproven(target: DiskTarget, why: str) -> DiskVerdict:
    """Say that nothing can be said of a disk."""
    return DiskVerdict(target=target, verdict="unproven", how="none", why=why)


def cancelled() -> Conflict:
    """Make the error of a verification that was given up."""
    return Conflict(
        "verify-cancelled",
        "the verification was cancelled; nothing was changed",
        hint="vmreplica verify VM",
        kind="transient",
    )


def _windows(blocks: int) -> list[tuple[int, int]]:
    return [(first, min(_ASKED, blocks - first)) for first in range(0, blocks, _ASKED)]


def _all_wrong(target: DiskTarget, size: int, read: int, why: str) -> DiskVerdict:
    return DiskVerdict(target=target, verdict="wrong", how="sum", read_bytes=read, wrong_bytes=size, why=why)


def _verdict(target: DiskTarget, how: str, wrong: list[WrongRange], read: int, *, own: bool) -> DiskVerdict:
    verdict = "wrong" if wrong else "equal" if own else "unproven"
    return DiskVerdict.model_validate(
        {
            "target": target,
            "verdict": verdict,
            "how": how,
            "read_bytes": read,
            "wrong_bytes": sum(place.length for place in wrong),
            "wrong": tuple(wrong),
            "why": OF_REPLICA if verdict == "unproven" else "",
        }
    )

"""What the replica asks to be brought again: clusters that its newest point reads wrong. Pure.

The replica asks until its newest point has them, so nothing of it is kept here: a killed cycle is told again.
"""

from collections.abc import Collection, Iterable, Mapping

from vmreplica.model.damage import Repair
from vmreplica.model.ids import DiskTarget

#: Clusters (first, end), ascending and apart.
ClusterRanges = tuple[tuple[int, int], ...]


def repair_ranges(repairs: Iterable[Repair], targets: Collection[DiskTarget]) -> dict[DiskTarget, ClusterRanges]:
    """Order what is asked for by disk; disks that are not replicated (any more) are left out.

    Args:
        repairs: as the replica says, in any order, overlapping or not.
        targets: the disks of the point that will bring it.
    """
    found: dict[DiskTarget, list[tuple[int, int]]] = {}
    for repair in sorted(repairs, key=lambda repair: (repair.target, repair.first)):
        if repair.target not in targets:
            continue
        ranges = found.setdefault(repair.target, [])
        first, end = repair.first, repair.first + repair.clusters
        if ranges and first <= ranges[-1][1]:
            first, end = ranges[-1][0], max(end, ranges.pop()[1])
        ranges.append((first, end))
    return {target: tuple(ranges) for target, ranges in found.items()}


def repair_texts(ranges: Mapping[DiskTarget, ClusterRanges]) -> list[str]:
    """Say what is brought again, for the history."""
    counts = {target: sum(end - first for first, end in found) for target, found in sorted(ranges.items())}
    return [
        f"{target}: {count} damaged cluster{'s' if count > 1 else ''} brought again" for target, count in counts.items()
    ]

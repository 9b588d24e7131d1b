"""Whether a bitmap can be believed: it knows nothing of what a disk lost that shrank and grew again between two points.

QEMU cuts a bitmap off with its disk, and what grows back counts as clean although it is zero now. Such a loss takes all
behind some place: so the last cluster tells that the replica holds and the bitmap says to be unchanged.
"""

from collections.abc import Iterator

import numpy as np

from vmreplica.capture.plan import Run
from vmreplica.capture.view import DiskView
from vmreplica.fingerprint import BLOCKS_PER_CLUSTER, Fingerprint, hash_blocks


def tail_stands(view: DiskView, fingerprint: Fingerprint) -> bool:
    """Tell whether the last cluster that is in use and clean still holds what the replica has; reads one cluster.

    Args:
        view: goes by its bitmap.
        fingerprint: of the replica's latest point.

    Raises:
        HypervisorError: as from every question to the view.
    """
    last = _last_clean(view, fingerprint)
    if last is None:
        return True
    known = fingerprint.hashes(last * BLOCKS_PER_CLUSTER, BLOCKS_PER_CLUSTER)
    found = hash_blocks(view.read(Run(last, 1, wanted=True)), fingerprint.key)
    return bool(np.array_equal(found[: len(known)], known))


def _last_clean(view: DiskView, fingerprint: Fingerprint) -> int | None:
    for used in fingerprint.used_backwards(BLOCKS_PER_CLUSTER):
        low = used[0][0] // BLOCKS_PER_CLUSTER
        clean = view.clean(low, -(-used[-1][1] // BLOCKS_PER_CLUSTER))
        last = max(_common_ends(used, clean), default=None)
        if last is not None:
            return last - 1
    return None


def _common_ends(used: list[tuple[int, int]], clean: list[Run]) -> Iterator[int]:
    """Give the end of every stretch of clusters that is both used and clean."""
    pairs = iter(clean)
    run = next(pairs, None)
    for low, high in used:
        first, end = low // BLOCKS_PER_CLUSTER, -(-high // BLOCKS_PER_CLUSTER)
        while run is not None and run.first < end:
            if run.end > first:
                yield min(run.end, end)
            if run.end > end:
                break
            run = next(pairs, None)

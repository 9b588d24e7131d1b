"""What a replica is known to hold: one keyed hash per 4 KiB block of each disk (docs/design/fingerprint.md).

Knows hashes, the fingerprint's file and the entries that are staged for it. Knows nothing of segments, of where the
blocks were read, or of who believes a fingerprint: whoever calls says which point it describes.
"""

from vmreplica.fingerprint.blocks import BLOCK, BLOCKS_PER_CLUSTER, Hashes, blocks_of, hash_blocks
from vmreplica.fingerprint.entries import hash_entries, read_entries, recover_entries, zero_entries
from vmreplica.fingerprint.file import Fingerprint
from vmreplica.fingerprint.store import FingerprintStore
from vmreplica.fingerprint.sums import BlockSum, sum_after, sum_blocks

__all__ = [
    "BLOCK",
    "BLOCKS_PER_CLUSTER",
    "BlockSum",
    "Fingerprint",
    "FingerprintStore",
    "Hashes",
    "blocks_of",
    "hash_blocks",
    "hash_entries",
    "read_entries",
    "recover_entries",
    "sum_after",
    "sum_blocks",
    "zero_entries",
]

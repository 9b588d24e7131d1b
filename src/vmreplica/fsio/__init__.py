"""Durable files: the one way anything is published, and the one place that turns ENOSPC into a clear error.

Knows nothing of points, VMs or peers.
"""

from vmreplica.fsio.beneath import open_beneath
from vmreplica.fsio.durable import fsync_dir, publish_bytes, publish_dir, remove_tree
from vmreplica.fsio.space import free_bytes, no_space, require_free

__all__ = [
    "free_bytes",
    "fsync_dir",
    "no_space",
    "open_beneath",
    "publish_bytes",
    "publish_dir",
    "remove_tree",
    "require_free",
]

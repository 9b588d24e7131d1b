"""Sending a pending point's segments to its replica as the spool grows, several at once, resumable.

Knows the spool and what a wire must be able to do. Knows neither HTTP nor TLS nor who reads the guest; when to try
again after an error is decided by its caller.
"""

from vmreplica.ship.directory import DirectoryWire
from vmreplica.ship.ship import ship_point
from vmreplica.ship.wire import Wire

__all__ = ["DirectoryWire", "Wire", "ship_point"]

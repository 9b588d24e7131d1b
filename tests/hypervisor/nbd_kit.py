"""A plain NBD client for looking into exports."""

from typing import Any

import nbd

from vmreplica.hypervisor import Export


def dirty(export: Export) -> list[tuple[int, int]]:
    """List the dirty ranges of an export as offset and length."""
    found: list[tuple[int, int]] = []

    def collect(_context: str, offset: int, entries: list[int], _error: object) -> int:
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags & 1:
                found.append((offset, length))
            offset += length
        return 0

    client: Any = nbd.NBD()
    client.set_export_name(export.name)
    client.add_meta_context(f"qemu:dirty-bitmap:{export.bitmap}")
    client.connect_unix(str(export.socket))
    client.block_status(export.size, 0, collect)
    client.shutdown()
    return found


def content(export: Export, offset: int, length: int) -> bytes:
    """Read from an export."""
    client: Any = nbd.NBD()
    client.set_export_name(export.name)
    client.connect_unix(str(export.socket))
    data = bytes(client.pread(length, offset))
    client.shutdown()
    return data

"""libvirt's own backup calls, without vmreplica: the frozen view for the peer, and the floor of a cycle."""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from bench.hosts import Host, virsh


def disks(host: Host, guest: str) -> dict[str, Path]:
    """Tell a guest's disks: target and image file."""
    rows = [line.split() for line in virsh(host, "domblklist", guest, "--details").splitlines()]
    return {row[2]: Path(row[3]) for row in rows if row[:2] == ["file", "disk"]}


def named_domain(connection: libvirt.virConnect, guest: str) -> libvirt.virDomain:
    """Find a domain by its name."""
    return next(domain for domain in connection.listAllDomains() if domain.name() == guest)


def _backup_xml(socket: Path, chosen: Sequence[str], others: Sequence[str], base: str | None) -> str:
    incremental = f"<incremental>{base}</incremental>" if base else ""
    taken = "".join(
        f"<disk name='{target}' backup='yes' type='file'><driver type='qcow2'/>"
        f"<scratch file='{socket}.{target}.scratch'/></disk>"
        for target in chosen
    )
    left_out = "".join(f"<disk name='{target}' backup='no'/>" for target in others)
    server = f"<server transport='unix' socket='{socket}'/>"
    return f"<domainbackup mode='pull'>{incremental}{server}<disks>{taken}{left_out}</disks></domainbackup>"


def _checkpoint_xml(name: str, chosen: Sequence[str], others: Sequence[str]) -> str:
    taken = "".join(f"<disk name='{target}' checkpoint='bitmap'/>" for target in chosen)
    left_out = "".join(f"<disk name='{target}' checkpoint='no'/>" for target in others)
    return f"<domaincheckpoint><name>{name}</name><disks>{taken}{left_out}</disks></domaincheckpoint>"


@contextmanager
def frozen_view(host: Host, guest: str, target: str, *, since: str | None = None) -> Iterator[Path]:
    """Export one disk of a running guest as it is at this instant; yields the NBD server's unix socket.

    Args:
        host: where it runs.
        guest: its name.
        target: the disk.
        since: a checkpoint of that disk; the export tells then, as ``qemu:dirty-bitmap:backup-<target>``, what changed.
    """
    connection = libvirt.open(host.libvirt_uri)
    try:
        domain = named_domain(connection, guest)
        others = [other for other in disks(host, guest) if other != target]
        socket = host.scratch / f"bench-{uuid.uuid4().hex[:8]}.sock"
        domain.backupBegin(_backup_xml(socket, [target], others, since), None, 0)
        try:
            yield socket
        finally:
            domain.abortJob()
    finally:
        connection.close()


@contextmanager
def checkpoint(host: Host, guest: str, target: str) -> Iterator[str]:
    """Let libvirt note from now on what changes on one disk; yields the checkpoint's name, which is deleted then."""
    connection = libvirt.open(host.libvirt_uri)
    try:
        others = [other for other in disks(host, guest) if other != target]
        name = f"bench-{uuid.uuid4().hex}"
        made = named_domain(connection, guest).checkpointCreateXML(_checkpoint_xml(name, [target], others), 0)
        try:
            yield name
        finally:
            made.delete(0)
    finally:
        connection.close()


def lose_bitmaps(host: Host, guest: str) -> int:
    """Take every dirty bitmap from a running guest's disks, behind libvirt's back; tell how many there were."""
    connection = libvirt.open(host.libvirt_uri)
    try:
        domain = named_domain(connection, guest)
        nodes = _qmp(domain, "query-named-block-nodes", flat=True)
        found = [(node["node-name"], bitmap["name"]) for node in nodes for bitmap in node.get("dirty-bitmaps", ())]
        for node, bitmap in found:
            _qmp(domain, "block-dirty-bitmap-remove", node=node, name=bitmap)
        return len(found)
    finally:
        connection.close()


def _qmp(domain: libvirt.virDomain, command: str, **arguments: object) -> Any:
    question = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, question, 0))
    if "error" in answer:
        raise RuntimeError(f"{command}: {answer['error']}")
    return answer["return"]


class Floor:
    """The least that libvirt needs for a cycle: begin a backup with a checkpoint, end it, delete the older one.

    Nothing is read and nothing is sent; all checkpoints are gone when it is closed.
    """

    def __init__(self, host: Host, guest: str) -> None:
        self._host = host
        self._connection = libvirt.open(host.libvirt_uri)
        self._domain = named_domain(self._connection, guest)
        self._targets = list(disks(host, guest))
        self._base: str | None = None
        self.cycle()  # the first one has no base and is no cycle

    def cycle(self) -> float:
        """Do one cycle; tell its seconds."""
        name = f"bench-{uuid.uuid4().hex}"
        socket = self._host.scratch / f"{name[:14]}.sock"
        backup = _backup_xml(socket, self._targets, (), self._base)
        checkpoint = _checkpoint_xml(name, self._targets, ())
        begun = time.perf_counter()
        self._domain.backupBegin(backup, checkpoint, 0)
        self._domain.abortJob()
        if self._base is not None:
            self._domain.checkpointLookupByName(self._base).delete(0)
        seconds = time.perf_counter() - begun
        self._base = name
        return seconds

    def close(self) -> None:
        """Delete the last checkpoint."""
        if self._base is not None:
            self._domain.checkpointLookupByName(self._base).delete(0)
            self._base = None
        self._connection.close()

"""From facts about this host to findings. Pure."""

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmreplica.agent.doctor.host_facts import DirectoryFacts, SystemFacts
from vmreplica.hypervisor.examine import HostLook
from vmreplica.model.findings import Finding, fine, found
from vmreplica.model.units import GiB, format_duration, format_size

_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs"})
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
#: What must outlive a reboot; the spool is thrown away by one anyway.
_LASTING: Final = frozenset({"state_dir", "store"})
#: Guests wait for what is written here.
_QUICK: Final = frozenset({"runtime_dir", "spool"})
_MIN_INODES: Final = 1000
_PRIVATE: Final = 0o077
_CONFINING: Final = frozenset({"apparmor", "selinux"})
_LIBVIRT_DIR: Final = Path("/var/lib/libvirt")
#: Files that an agent has open without cycles, and that one cycle opens at most.
_FILES, _FILES_PER_CYCLE = 256, 128
_MAX_CLOCK_DIFFERENCE: Final = 5.0
_CERTIFICATE_NOTICE: Final = dt.timedelta(days=30)
_PEER_ROOM: Final = 10 * GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the configuration asks of the host; bytes."""

    min_free: int
    spool_cap: int
    scratch_cap: int
    cycles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts:
    """A paired host that answered. Times in seconds."""

    name: str
    address: str
    version: str
    certificate_expires: dt.datetime
    ca_expires: dt.datetime
    round_trip: float
    clock_ahead: float
    store_free: int


def judge_directories(directories: Sequence[DirectoryFacts], needs: Needs) -> list[Finding]:
    """Judge each directory by itself."""
    return [finding for facts in directories for finding in _directory(facts, needs)]


def _directory(facts: DirectoryFacts, needs: Needs) -> list[Finding]:
    subject = f"{facts.key} {facts.path}"
    if not facts.exists:
        return [found("directory-missing", subject, "it is not there", path=facts.path)]
    findings = [*_access(facts, subject), *_place(facts, subject), *_room(facts, subject, needs)]
    if findings:
        return findings
    inodes = f", {facts.free_inodes} inodes" if facts.inodes else ""
    return [fine("directories", subject, f"{format_size(facts.free)} free{inodes}, {facts.kind or 'unknown'}")]


def _access(facts: DirectoryFacts, subject: str) -> Iterator[Finding]:
    if not facts.writable:
        yield found("directory-not-writable", subject, "the agent cannot write to it", path=facts.path)
    if facts.key == "pki" and facts.mode & _PRIVATE:
        yield found("directory-open", subject, f"its mode is {facts.mode:o}", path=facts.path)
    if facts.blocked_at is not None:
        text = f"QEMU's user may not pass through {facts.blocked_at}"
        yield found("directory-not-passable", subject, text, directory=facts.blocked_at)


def _place(facts: DirectoryFacts, subject: str) -> Iterator[Finding]:
    if facts.kind in _NETWORK and facts.key in _QUICK:
        yield found("directory-on-network", subject, f"its file system is {facts.kind}", key=_setting(facts.key))
    if facts.kind in _MEMORY and facts.key in _LASTING:
        yield found("directory-volatile", subject, f"its file system is {facts.kind}", key=_setting(facts.key))


def _room(facts: DirectoryFacts, subject: str, needs: Needs) -> Iterator[Finding]:
    text = f"{format_size(facts.free)} free, {format_size(needs.min_free)} are always left free"
    if facts.free < needs.min_free or not facts.free:
        yield found("space-none", subject, text, path=facts.path)
    elif facts.free < 2 * needs.min_free:
        yield found("space-low", subject, text, path=facts.path)
    if facts.inodes and facts.free_inodes < _MIN_INODES:
        yield found("inodes-low", subject, f"{facts.free_inodes} of {facts.inodes} inodes free", path=facts.path)


def _setting(key: str) -> str:
    """Name the key of the configuration that moves a directory."""
    return "state_dir" if key in {"spool", "pki"} else key


def judge_beside(directories: Sequence[DirectoryFacts], images: Collection[int], needs: Needs) -> list[Finding]:
    """Judge whether spool and scratch, grown to their caps, could fill a file system of live images.

    Args:
        directories: of the configuration.
        images: numbers of the file systems that live images lie on.
        needs: caps.
    """
    caps = {"spool": needs.spool_cap, "runtime_dir": needs.scratch_cap}
    beside = [facts for facts in directories if facts.key in caps and facts.exists and facts.device in images]
    findings = []
    for facts in beside:
        wanted = sum(caps[other.key] for other in beside if other.device == facts.device) + needs.min_free
        subject = f"{facts.key} {facts.path}"
        if facts.free < wanted:
            text = f"on the file system of live images: {format_size(facts.free)} free, {format_size(wanted)} may go"
            findings.append(found("scratch-beside-images", subject, text, key=_setting(facts.key)))
    return findings


def judge_rights(system: SystemFacts, look: HostLook | None, runtime_dir: Path) -> list[Finding]:
    """Judge what the agent and QEMU may do."""
    findings = []
    if not system.root:
        findings.append(found("not-root", "user of the agent", "it is not root"))
    confining = sorted(_CONFINING & set(look.security)) if look else []
    if confining and not runtime_dir.is_relative_to(_LIBVIRT_DIR):
        text = f"{confining[0]} is active, and {runtime_dir} is not below {_LIBVIRT_DIR}"
        findings.append(found("confined-outside", "security of QEMU", text))
    elif look:
        findings.append(fine("rights", "security of QEMU", ", ".join(look.security) or "no security model"))
    return findings


def judge_limits(system: SystemFacts, needs: Needs) -> list[Finding]:
    """Judge the limits that the system sets."""
    wanted = _FILES + _FILES_PER_CYCLE * needs.cycles
    subject = "open files"
    if 0 <= system.open_files < wanted:
        text = f"{system.open_files} allowed, {needs.cycles} cycles at once may need {wanted}"
        return [found("open-files-low", subject, text, wanted=wanted)]
    return [fine("limits", subject, f"{system.open_files} allowed")]


def judge_clock(system: SystemFacts) -> list[Finding]:
    """Judge this host's own clock."""
    if system.clock_synchronised is None:
        return [fine("clock", "kernel clock", "the kernel does not tell whether it is synchronised")]
    if not system.clock_synchronised:
        return [found("clock-not-synchronised", "kernel clock", "it runs free")]
    return [fine("clock", "kernel clock", "synchronised")]


def judge_own_certificates(leaf_ends: dt.datetime, ca_ends: dt.datetime, now: dt.datetime) -> list[Finding]:
    """Judge what this host shows to others."""
    renewed = "the agent renews it by itself when it can write its state_dir: systemctl restart vmreplica"
    paired = "move pki out of state_dir, restart the agent and pair all hosts again: vmreplica peer invite"
    return [
        _certificate("certificate of this host", leaf_ends, now, renewed),
        _certificate("CA of this host", ca_ends, now, paired),
    ]


def _certificate(subject: str, ends: dt.datetime, now: dt.datetime, remedy: str) -> Finding:
    left = ends - now
    if left <= dt.timedelta(0):
        return found("certificate-expired", subject, f"it ended on {ends:%Y-%m-%d}", remedy=remedy)
    if left < _CERTIFICATE_NOTICE:
        text = f"it ends on {ends:%Y-%m-%d}, in {format_duration(left.total_seconds())}"
        return found("certificate-expires", subject, text, remedy=remedy)
    return fine("certificates", subject, f"valid until {ends:%Y-%m-%d}")


def judge_peer(facts: PeerFacts, own_version: str, now: dt.datetime) -> list[Finding]:
    """Judge a paired host that answered."""
    trip = f"answers at {facts.address} in {facts.round_trip * 1000:.0f} ms, version {facts.version}"
    renewed = f"on {facts.name}: systemctl restart vmreplica, which renews it"
    paired = f"pair with {facts.name} again: vmreplica peer invite"
    findings = [
        fine("peers", facts.name, trip),
        _certificate(f"certificate of {facts.name}", facts.certificate_expires, now, renewed),
        _certificate(f"CA of {facts.name}", facts.ca_expires, now, paired),
        _clock_of(facts),
    ]
    if facts.version != own_version:
        text = f"it runs {facts.version}, this host {own_version}"
        findings.append(found("peer-version-differs", facts.name, text))
    if facts.store_free < _PEER_ROOM:
        text = f"{format_size(facts.store_free)} free where it keeps copies"
        findings.append(found("peer-store-low", facts.name, text, peer=facts.name))
    return findings


def _clock_of(facts: PeerFacts) -> Finding:
    subject = f"clock of {facts.name}"
    side = "ahead" if facts.clock_ahead > 0 else "behind"
    # The answer was made somewhere within the round trip: what is less than half of it proves nothing.
    if abs(facts.clock_ahead) - facts.round_trip / 2 > _MAX_CLOCK_DIFFERENCE:
        return found("clock-differs", subject, f"it is {format_duration(abs(facts.clock_ahead))} {side}")
    return fine("clock", subject, f"{abs(facts.clock_ahead):.1f} s {side}")

"""What ``doctor`` can find: every code with its severity, meaning and remedy. Data, and the shape of a finding."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vmreplica.model.shape import Shape


class Severity(StrEnum):
    """How urgent a finding is."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Shape):
    """One thing that was looked at, and what was found."""

    code: str
    severity: Severity
    group: str
    #: What was looked at: a program, directory, host, VM or disk.
    subject: str
    text: str
    #: The next command or act; empty when nothing has to be done.
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A code's documentation; ``{names}`` in the remedy are filled in when something is found."""

    group: str
    severity: Severity
    meaning: str
    remedy: str


#: In the order in which they are shown: first this host, then one VM.
GROUPS: Final = (
    "agent", "configuration", "libvirt", "versions", "rights", "directories", "limits", "clock", "certificates",
    "peers", "vms", "leftovers", "vm", "replica", "disks", "checkpoints", "space", "guest-agent", "definition", "trial",
)  # fmt: skip

_I, _W, _P = Severity.INFO, Severity.WARNING, Severity.PROBLEM

CATALOGUE: Final[dict[str, Entry]] = {
    "agent-not-running": Entry(
        "agent", _P, "no agent answers; only what the command line sees by itself was looked at",
        "systemctl start vmreplica; journalctl -u vmreplica says why it ended",
    ),
    "check-failed": Entry("agent", _P, "something could not be looked at", "{hint}"),
    "check-timed-out": Entry(
        "agent", _P, "something did not answer in time",
        "see whether `virsh list` and `df` answer on this host, then again: vmreplica doctor",
    ),
    "check-skipped": Entry(
        "agent", _I, "something was not looked at, because what it needs does not answer",
        "remove the problem that is named first, then again: vmreplica doctor",
    ),
    "configuration-invalid": Entry(
        "configuration", _P, "the agent would not start with this configuration",
        "{hint}",
    ),
    "libvirt-unreachable": Entry(
        "libvirt", _P, "libvirt does not answer: no VM is replicated meanwhile",
        "systemctl restart libvirtd (guests run on), then: virsh -c {uri} list",
    ),
    "backup-unsupported": Entry(
        "versions", _P, "this host's libvirt and QEMU offer no backup jobs",
        "upgrade to libvirt 8.0 and QEMU 6.2 or newer",
    ),
    "version-too-old": Entry(
        "versions", _P, "older than what replication needs", "upgrade {component} to {wanted} or newer",
    ),
    "version-untested": Entry(
        "versions", _I, "sufficient, but older than what vmreplica is tested with",
        "upgrade {component} to {wanted} or newer when you can",
    ),
    "version-known-bad": Entry(
        "versions", _W, "a version with a known fault that concerns replication", "{remedy}",
    ),
    "not-root": Entry(
        "rights", _W, "the agent does not run as root: it may not reach QEMU's sockets and images",
        "run it as the packaged service does: systemctl start vmreplica",
    ),
    "directory-not-passable": Entry(
        "rights", _P, "QEMU's user cannot pass through a directory to what it must read or write",
        "chmod o+x {directory}",
    ),
    "confined-outside": Entry(
        "rights", _W, "AppArmor or SELinux confines QEMU, and the place of its sockets is not below /var/lib/libvirt",
        "set runtime_dir in [agent] to /var/lib/libvirt/vmreplica, or allow QEMU the path; "
        "`vmreplica doctor VM` tries it",
    ),
    "directory-missing": Entry(
        "directories", _P, "a configured directory is not there", "mkdir -p {path}, or mount its file system",
    ),
    "directory-not-writable": Entry(
        "directories", _P, "a configured directory cannot be written to, or belongs to a read-only file system",
        "correct owner and mode of {path}; `findmnt -T {path}` shows how it is mounted",
    ),
    "directory-open": Entry(
        "directories", _P, "others may read this host's private key", "chmod 700 {path}",
    ),
    "space-none": Entry(
        "directories", _P, "less is free than limits.min_free: replication waits for room",
        "make room on the file system of {path}; replication goes on by itself",
    ),
    "space-low": Entry(
        "directories", _W, "less than twice limits.min_free is free", "make room on the file system of {path}",
    ),
    "inodes-low": Entry(
        "directories", _P, "the file system has nearly no inodes left", "remove files, or make the file system anew "
        "with more inodes: df -i {path}",
    ),
    "directory-on-network": Entry(
        "directories", _W, "scratch or spool lie on a network file system: guests wait for it at every write",
        "set {key} in [agent] to a directory on a local disk",
    ),
    "directory-volatile": Entry(
        "directories", _P, "identity or recovery points lie in memory and are gone after a reboot",
        "set {key} in [agent] to a directory on a disk",
    ),
    "scratch-beside-images": Entry(
        "directories", _W, "spool or scratch could fill the file system that live images grow on",
        "set {key} in [agent] to another file system, or lower limits.spool_cap and limits.scratch_cap",
    ),
    "open-files-low": Entry(
        "limits", _W, "the agent may open too few files for its cycles at once",
        "set LimitNOFILE={wanted} in the service, or lower limits.concurrent_cycles",
    ),
    "clock-not-synchronised": Entry(
        "clock", _W, "the kernel says that nothing keeps this host's clock right",
        "timedatectl set-ntp true, or install chrony",
    ),
    "clock-differs": Entry(
        "clock", _W, "this host's clock and a peer's differ by more than 5 s: ages of points are wrong by that",
        "synchronise both clocks (NTP): timedatectl set-ntp true",
    ),
    "certificate-expires": Entry(
        "certificates", _W, "a certificate ends within 30 days",
        "{remedy}",
    ),
    "certificate-expired": Entry(
        "certificates", _P, "a certificate has ended: the peers refuse each other", "{remedy}",
    ),
    "no-peers": Entry(
        "peers", _I, "no host is paired with this one", "vmreplica peer invite, then vmreplica peer join on the other",
    ),
    "peer-unreachable": Entry(
        "peers", _P, "a paired host does not answer at any of its addresses",
        "is it up, is its agent, does a firewall let port 7432 through? then: vmreplica peer test {peer}",
    ),
    "peer-refuses": Entry("peers", _P, "a paired host answers, but refuses this one", "{hint}"),
    "peer-version-differs": Entry(
        "peers", _I, "a paired host runs another version of vmreplica", "upgrade both hosts to the same version",
    ),
    "peer-store-low": Entry(
        "peers", _W, "less than 10 GiB are free where a paired host keeps its copies",
        "make room in the store of {peer}, or lower --keep",
    ),
    "autostart-on": Entry(
        "vms", _W, "libvirt starts a protected VM by itself; the agent takes that over within a minute, as libvirt "
        "asks no replica first",
        "if it stays so: virsh autostart --disable {vm}; vmreplica autostart {vm}",
    ),
    "hook-missing": Entry(
        "vms", _W, "libvirt does not ask the agent: after a failover the old copy could be started too",
        "vmreplica install-hook && systemctl reload libvirtd",
    ),
    "hook-not-executable": Entry(
        "vms", _W, "libvirt passes over its hook: after a failover the old copy could be started too",
        "chmod 755 {path}; systemctl reload libvirtd",
    ),
    "hook-outdated": Entry(
        "vms", _W, "libvirt's hook is of another version of vmreplica, or asks at another place than the agent listens",
        "vmreplica install-hook",
    ),
    "policy-unreadable": Entry(
        "vms", _P, "a VM's replication policy cannot be read: it is not replicated", "{hint}",
    ),
    "job-left": Entry(
        "leftovers", _W, "a backup job of vmreplica runs on a VM that it does not protect", "virsh domjobabort {vm}",
    ),
    "checkpoint-left": Entry(
        "leftovers", _W, "a VM has a checkpoint of vmreplica that belongs to no relationship: its bitmaps cost memory",
        "with the VM running: virsh checkpoint-delete {vm} {checkpoint}",
    ),
    "scratch-left": Entry(
        "leftovers", _W, "scratch files without a backup job take room", "rm -r {path}",
    ),
    "spool-left": Entry(
        "leftovers", _W, "the spool holds a point of a VM that is not protected here",
        "protect the VM again, or with the agent stopped: rm -r {path}",
    ),
    "state-left": Entry(
        "leftovers", _I, "fingerprints of an unprotected VM, or documents of one that is gone", "rm -r {path}",
    ),
    "bitmaps-left": Entry(
        "leftovers",
        _W,
        "images of a VM that is not protected here still hold bitmaps of vmreplica, which libvirt does not know",
        "with the VM running: virsh checkpoint-create {vm} {path} --redefine, then "
        "virsh checkpoint-delete {vm} {checkpoint} and rm {path}",
    ),
    "run-layer-left": Entry(
        "leftovers", _W, "a replica that is not failed over still has the layer that a failover wrote to",
        "keep a copy if its content matters, then: rm -r {path}",
    ),
    "replica-damaged": Entry("leftovers", _P, "a directory of the store is no replica that can be used", "{hint}"),
    "vm-not-protected": Entry("vm", _I, "the VM is not replicated", "vmreplica enable {vm} --to PEER"),
    "vm-off": Entry(
        "vm", _I, "the VM is shut off: what needs it running was not looked at",
        "virsh start {vm}, then again: vmreplica doctor {vm}",
    ),
    "vm-paused": Entry("vm", _W, "replication of the VM rests because somebody paused it", "vmreplica resume {vm}"),
    "cycle-failed": Entry("vm", _P, "the last replication cycle failed", "{hint}"),
    "replica-refuses": Entry("replica", _P, "the VM's replica does not answer for it", "{hint}"),
    "failed-over-elsewhere": Entry(
        "replica", _P, "the VM was failed over to its replica: this copy is stale",
        "decide which side survives before you start {vm} here",
    ),
    "replica-room": Entry(
        "replica", _W, "the replica has less room free than the first copy may need",
        "make room in the store of {peer}: its `vmreplica doctor` shows where",
    ),
    "replica-complains": Entry("replica", _W, "the replica reports a fault", "on the replica: vmreplica doctor {vm}"),
    "disk-not-eligible": Entry(
        "disks", _P, "a disk cannot be replicated and is not left out: the VM cannot be protected as it is",
        "change the disk, or leave it out: vmreplica enable {vm} --to PEER --exclude-disk {disk}",
    ),
    "disk-excluded": Entry("disks", _I, "a disk is not replicated", ""),
    "disk-untracked": Entry(
        "disks", _I, "changes of a disk cannot be tracked: it is read whole at each cycle, only changes are sent",
        "use a qcow2 image of version 3 for shorter cycles",
    ),
    "no-eligible-disks": Entry(
        "disks", _P, "no disk is left that can be replicated", "give {vm} a disk of format qcow2 or raw",
    ),
    "image-unreadable": Entry(
        "disks", _P, "qemu-img cannot read an image or one of its backing files: {vm} would not start",
        "qemu-img info -U --backing-chain {path}",
    ),
    "backing-format-missing": Entry(
        "disks", _W, "an image does not say which format its backing file has: libvirt refuses to start such a VM",
        "with the VM off: qemu-img rebase -u -F FORMAT -b BACKING {path}",
    ),
    "bitmap-broken": Entry(
        "checkpoints", _W, "the change tracking of a disk was lost, as by a crash of its QEMU",
        "nothing: the next cycle compares the disk with what the replica holds",
    ),
    "bitmap-broken-foreign": Entry(
        "checkpoints",
        _W,
        "the change tracking of another backup tool was lost; it still takes room in the image",
        "make a full backup with that tool, or with the VM off: qemu-img bitmap --remove {path} {bitmap}",
    ),
    "bitmaps-many": Entry(
        "checkpoints", _W, "an image holds many bitmaps: each costs memory, and time at shutdown",
        "remove those of backup tools that are no longer used: virsh checkpoint-list {vm}",
    ),
    "checkpoints-foreign": Entry(
        "checkpoints", _I, "another backup tool keeps checkpoints on the VM; vmreplica never touches them", "",
    ),
    "job-foreign": Entry(
        "checkpoints", _W, "another program's job runs on the VM: cycles wait until it has ended",
        "virsh domjobinfo {vm} shows it; replication goes on by itself",
    ),
    "image-space-none": Entry(
        "space", _P, "the file system of a live image is nearly full: a qcow2 image with bitmaps breaks when it is",
        "make room on the file system of {path} now",
    ),
    "image-space-low": Entry(
        "space", _W, "less than limits.min_free is free beside a live image", "make room on the file system of {path}",
    ),
    "scratch-small": Entry(
        "space", _W, "scratch space may not hold what the guest changes while it is read",
        "make room on the file system of {path}, or use a shorter --every",
    ),
    "guest-agent-absent": Entry(
        "guest-agent", _I, "no guest agent is connected: points are crash-consistent",
        "install qemu-guest-agent in the guest, and give the VM its channel: virsh edit {vm}",
    ),
    "guest-agent-silent": Entry(
        "guest-agent", _W, "the guest agent is connected and does not answer",
        "in the guest: systemctl restart qemu-guest-agent",
    ),
    "guest-agent-wanted": Entry(
        "guest-agent", _W, "application-consistent points are wanted, and no guest agent is connected",
        "install qemu-guest-agent in the guest, and give the VM its channel: virsh edit {vm}",
    ),
    "guest-cannot-freeze": Entry(
        "guest-agent", _W, "application-consistent points are wanted, and the guest agent cannot freeze, or may not",
        "in the guest, let the agent obey the guest-fsfreeze commands (its option for blocked ones), and restart it",
    ),
    "guest-frozen": Entry(
        "guest-agent", _P, "the guest's file systems are frozen: whatever writes in it waits",
        "virsh domfsthaw {vm}; when that fails, in the guest: fsfreeze -u MOUNTPOINT, or reset it",
    ),
    "guest-not-quiesced": Entry(
        "guest-agent", _W, "application-consistent points are wanted, and the last tries came to none",
        "vmreplica history {vm} --kind quiesce tells since when; docs/howto/application-consistent-points.md, why",
    ),
    "freeze-hook-absent": Entry(
        "guest-agent", _I, "no hook tells the guest's programs that the file systems will be frozen",
        "put a script in the guest at /etc/qemu/fsfreeze-hook: docs/howto/application-consistent-points.md",
    ),
    "definition-refused": Entry(
        "definition", _P, "no definition for a replica can be made of the VM's", "{hint}",
    ),
    "definition-changed": Entry(
        "definition", _I, "the copy would differ from the VM",
        "virsh dumpxml {vm} shows the original",
    ),
    "trial-skipped": Entry("trial", _I, "no backup job was tried", "{remedy}"),
    "trial-failed": Entry("trial", _P, "a backup job could not be begun and ended", "{hint}"),
}  # fmt: skip


def found(code: str, subject: str, text: str, **names: object) -> Finding:
    """Make a finding of the catalogue.

    Args:
        code: of the catalogue.
        subject: what was looked at.
        text: what was found.
        names: what the remedy names.
    """
    entry = CATALOGUE[code]
    remedy = entry.remedy.format(**names)
    return Finding(code=code, severity=entry.severity, group=entry.group, subject=subject, text=text, remedy=remedy)


def fine(group: str, subject: str, text: str) -> Finding:
    """Make a finding that needs nothing."""
    return Finding(code=f"{group}-ok", severity=Severity.OK, group=group, subject=subject, text=text)


def catalogued(code: str) -> bool:
    """Tell whether a code can be found: one of the catalogue, or that of a group without fault."""
    return code in CATALOGUE or code in {f"{group}-ok" for group in GROUPS}


def worst(findings: Iterable[Finding]) -> Severity:
    """Tell the highest severity; ok when there is nothing."""
    order = list(Severity)
    return max((finding.severity for finding in findings), key=order.index, default=Severity.OK)


def arranged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Order findings by group, and in a group the worst last, where the eye rests."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda one: (GROUPS.index(one.group), order.index(one.severity), one.subject)))

"""Every reason that health can give: its stable code, how urgent it is, what it means and what to do.

``docs/reference/health.md`` is made of it. ``VM`` in a remedy stands for the VM's name.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Entry:
    """One reason."""

    levels: str
    meaning: str
    remedy: str


CATALOGUE: Final[dict[str, Entry]] = {
    "failed-over-elsewhere": Entry(
        "critical",
        "the VM was failed over to the replica: the copy on this host is stale",
        "decide which side survives before you start the VM here",
    ),
    "runs-twice": Entry(
        "critical",
        "the VM runs on its old primary and on its replica at the same time",
        "shut it down here: virsh shutdown VM; then docs/runbooks/failed-over-elsewhere.md",
    ),
    "start-waits": Entry(
        "critical",
        "the VM starts with its host, and waits because its replica does not say that it may",
        "make its replica answer, or, if you know that it runs nowhere else: vmreplica start VM --i-am-sure",
    ),
    "moving": Entry(
        "warning",
        "the VM is off and moving to its replica: a planned failover is under way",
        "vmreplica failover VM --planned goes on with it, --cancel takes it back",
    ),
    "paused": Entry("warning", "replication is paused", "vmreplica resume VM"),
    "not-protected": Entry(
        "warning",
        "the VM runs on its replica and is not protected there",
        "vmreplica reverse VM makes its old primary the replica; the old primary must not start the VM",
    ),
    "base-awaited": Entry(
        "warning",
        "the first copy travels in an export: until it is imported no point can be used",
        "on the replica: vmreplica import DIR",
    ),
    "vm-off": Entry(
        "warning",
        "the VM is shut off, its last point is complete: nothing is lost",
        "start the VM; replication goes on by itself",
    ),
    "rpo-exceeded": Entry(
        "warning above 2 intervals, critical above 4",
        "the newest point is older than the relationship's interval promises",
        "on the primary, vmreplica status VM names the last error",
    ),
    "cycles-missed": Entry(
        "warning",
        "the last cycle began late: two turns or more passed while others had theirs",
        "use a longer --every, or let more cycles run at once: concurrent_cycles in [limits] of the configuration",
    ),
    "resync-needed": Entry(
        "warning",
        "changes since the last point cannot be told from the bitmap: the disks are compared as a whole",
        "nothing: replication goes on by itself, with a longer cycle; docs/runbooks/resynchronisation.md",
    ),
    "interval-not-kept": Entry(
        "warning",
        "a cycle takes longer than the interval",
        "use a longer --every or a faster line",
    ),
    "replica-complains": Entry(
        "warning",
        "the replica has something to complain about, in its own words",
        "do what it says, on the replica's host",
    ),
    "scrub-damage": Entry(
        "critical, warning when the newest point is good",
        "bytes of a recovery point on the replica are not what they were",
        "vmreplica points VM shows which points are good; vmreplica verify VM --repair brings the right bytes again",
    ),
    "scrub-overdue": Entry(
        "warning",
        "a recovery point was not read and checked within the period of scrub",
        "vmreplica scrub VM checks it now; a higher scrub_limit or longer scrub in [replica] gives it time",
    ),
    "verify-differs": Entry(
        "critical",
        "the replica's newest verified point is not what the primary has",
        "vmreplica verify VM --repair brings the wrong blocks again",
    ),
    "boot-test-failed": Entry(
        "warning, critical from the second one on",
        "the last boot test of the replica showed no sign of life",
        "vmreplica boot-test VM tries again; its picture shows where it stopped: vmreplica boot-test VM --picture FILE",
    ),
    "boot-test-overdue": Entry(
        "warning",
        "boot tests are on a schedule, and the last one is older than twice its period",
        "vmreplica boot-test VM; vmreplica history VM tells why those that were due were left out",
    ),
    "quiesce-failing": Entry(
        "warning",
        "points should be application-consistent, and are only crash-consistent: quiescing fails",
        "vmreplica doctor VM looks at the guest agent; points are still taken",
    ),
    "guest-frozen": Entry(
        "critical",
        "the guest's file systems are still frozen: whatever writes in it waits",
        "virsh domfsthaw VM",
    ),
    "space-low": Entry(
        "warning when full within 7 days, critical within 1 day",
        "the file system of the recovery points fills up",
        "make room, keep fewer points (vmreplica enable VM --keep ...), or docs/howto/move-the-store.md",
    ),
    "space-out": Entry(
        "critical",
        "the file system of the recovery points has less free than must stay free: no point is taken in",
        "docs/runbooks/store-full.md",
    ),
}

"""How long a guest's file systems stand still for an application-consistent point, beside libvirt's begin of a job."""

import base64
import itertools
import json
from typing import Any, Final

from bench.hosts import virsh
from bench.lab import BenchLab
from bench.report import Measure, measure, middle, spread

#: Seconds beyond what libvirt takes to begin the backup job.
ALLOWED: Final = 0.3
_GUEST: Final = "freeze"
_LOG_BYTES: Final = 65536


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Take application-consistent points of a guest whose database is at work, one after the other."""
    lab.add_database(_GUEST)
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h", "--app-consistent", "cycles=1")
    went = [_quiesced(lab) for _ in range(7 if quick else 21)]
    inside = _inside(lab)[-len(went) :]
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    beyond = [one["held"] - one["begin"] for one in went]
    return measure(
        ours={
            "seconds_beyond": middle(beyond),
            "all_seconds_beyond": spread(beyond),
            "seconds": middle([one["held"] for one in went]),
            "seconds_with_flushing_and_hook": middle([one["frozen"] for one in went]),
            "seconds_seen_inside": middle(inside),
        },
        peer="backup_begin",
        theirs={"seconds": middle([one["begin"] for one in went]), "allowed_seconds_beyond": ALLOWED},
        ratio=middle(beyond) / ALLOWED,
        goal=1.0,
    )


def _quiesced(lab: BenchLab) -> dict[str, float]:
    lab.cycle(_GUEST, "delta")
    went: dict[str, Any] = lab.primary.vmreplica("history", _GUEST, "--limit", "1")["cycles"][0]["quiescence"]
    if went["failure"] is not None:
        raise RuntimeError(f"the guest was not quiesced: {went}")
    return went


def _inside(lab: BenchLab) -> list[float]:
    """Read from the guest's hook for how long its file systems stood still: from its end to its next beginning."""
    handle = _ask(lab, "guest-file-open", path="/tmp/hook.log", mode="r")  # noqa: S108 - in the guest
    text = base64.b64decode(_ask(lab, "guest-file-read", handle=handle, count=_LOG_BYTES)["buf-b64"]).decode()
    _ask(lab, "guest-file-close", handle=handle)
    marks = [line.split() for line in text.splitlines()]
    return [
        float(later[1]) - float(earlier[1])
        for earlier, later in itertools.pairwise(marks)
        if (earlier[0], later[0]) == ("freeze", "thaw")
    ]


def _ask(lab: BenchLab, command: str, **arguments: Any) -> Any:
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(virsh(lab.primary, "qemu-agent-command", _GUEST, request))["return"]

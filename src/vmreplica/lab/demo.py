"""The demonstration: protect a running VM, kill its whole host, start the copy, and check every record.

Prints what happens in words and ends with one line of JSON with measured values. Everything goes through the command
line, as a person would do it; the lab only stands in for two machines in two buildings.
"""

import datetime as dt
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from vmreplica.lab.guest import Guest, GuestSpec
from vmreplica.lab.host import Host
from vmreplica.lab.lab import Lab
from vmreplica.lab.records import RecordsReport, check_records, last_record_finished_before
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.units import MiB, format_duration, format_size

_VM: Final = "web"
_INTERVAL: Final = 5
_DELTAS: Final = 5
#: A guest's clock has whole seconds and may be one off; records older than this before a point must be in it.
_CLOCK_SLACK: Final = 2.0


def main() -> int:
    """Run the demonstration in a lab of its own; tell the exit code."""
    with tempfile.TemporaryDirectory(prefix="vmr-demo-", dir="/var/tmp") as scratch:
        directory = Path(scratch) / "lab"
        try:
            result = Demo(directory).run()
        except VmReplicaError as error:
            say(f"The demonstration failed: {error.message}. {error.hint}")
            result = {"result": "failed", "error": error.problem().model_dump()}
        finally:
            Lab.remove(directory)
    print(json.dumps(result), flush=True)  # noqa: T201 - the last line is the result, for scripts
    return 0 if result["result"] == "ok" else 1


def say(text: str) -> None:
    """Tell what happens."""
    print(text, flush=True)  # noqa: T201 - what a demonstration is for


class Demo:
    """One run.

    Args:
        directory: where the lab will live.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self) -> dict[str, Any]:
        """Go through all acts and tell the figures."""
        say("1. Two hosts, a and b, each with its own network, its own libvirtd and a vmreplica agent.")
        lab = Lab.up(self._directory, hosts=2, say=_indented)
        a, b = lab.host("a"), lab.host("b")
        guest = self._guest(a)
        self._pair(a, b)
        figures = self._protect(a) | self._watch_deltas(a, guest)
        crashed = self._crash(lab, guest)
        report, rto = self._fail_over(b)
        alive = self._await_guest(b)
        return self._judge(b, guest, report["plan"], crashed, alive) | {"rto_seconds": round(rto, 2)} | figures

    def _guest(self, a: Host) -> Guest:
        say(f"2. A real Linux guest, {_VM}, boots on host a from its own two disks and writes numbered records.")
        guest = a.add_guest(GuestSpec(name=_VM, disks=2, size=256 * MiB, fill=96 * MiB))
        guest.wait_booted()
        guest.wait_record(5)
        return guest

    def _pair(self, a: Host, b: Host) -> None:
        say("3. The hosts are paired: `vmreplica peer invite` on a, `vmreplica peer join TOKEN` on b.")
        token = _ask(a, "peer", "invite")["token"]
        _ask(b, "peer", "join", token)
        test = _ask(a, "peer", "test", "b")
        say(f"   round trip {test['round_trip_ms']:.1f} ms, {format_size(test['send_bytes_per_second'])}/s")

    def _protect(self, a: Host) -> dict[str, Any]:
        say(f"4. `vmreplica enable {_VM} --to b --every {_INTERVAL}s` on host a: the first copy; the guest runs on.")
        _ask(a, "enable", _VM, "--to", "b", "--every", f"{_INTERVAL}s")
        cycle = self._cycles(a, at_least=1)[0]
        say(
            f"   {format_size(cycle['guest_bytes'])} of the guest's disks in {format_duration(cycle['seconds'])}, "
            f"{format_size(cycle['wire_bytes'])} on the wire"
        )
        return {"initial_bytes_on_wire": cycle["wire_bytes"], "initial_guest_bytes": cycle["guest_bytes"]}

    def _watch_deltas(self, a: Host, guest: Guest) -> dict[str, Any]:
        say(f"5. From now on only changes cross the network, every {_INTERVAL} seconds.")
        cycles = self._cycles(a, at_least=1 + _DELTAS)
        for cycle in cycles[1:]:
            say(f"   delta: {format_size(cycle['wire_bytes'])} in {cycle['seconds']:.2f} s")
        say(f"   the guest has reached record {guest.last_seen()}")
        return {"delta_bytes_on_wire": [cycle["wire_bytes"] for cycle in cycles[1:]]}

    def _cycles(self, a: Host, at_least: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 120 + at_least * _INTERVAL
        while time.monotonic() < deadline:
            cycles = [c for c in _ask(a, "history", _VM)["cycles"] if c["outcome"] == "published"]
            if len(cycles) >= at_least:
                return list(reversed(cycles))
            time.sleep(0.5)
        raise VmReplicaError("demo-too-slow", f"{at_least} cycles did not come in time", hint="see the agents' logs")

    def _crash(self, lab: Lab, guest: Guest) -> dt.datetime:
        say("6. Disaster: everything on host a dies at once, guest, libvirtd and agent; its line is dead, too.")
        lab.crash("a")
        crashed = dt.datetime.now(dt.UTC)
        say(f"   the guest's last words: record {guest.last_seen()}")
        return crashed

    def _fail_over(self, b: Host) -> tuple[dict[str, Any], float]:
        say(f"7. `vmreplica failover {_VM}` on host b.")
        began = time.monotonic()
        report = _ask(b, "failover", _VM, "--yes")
        rto = time.monotonic() - began
        say(f"   the copy runs {rto:.2f} s after the command, from point {report['plan']['point']}")
        return report, rto

    def _await_guest(self, b: Host) -> int:
        number = b.wait_domain_alive(_VM)
        say(f"8. The guest booted on host b and goes on writing: record {number}.")
        return number

    def _judge(self, b: Host, guest: Guest, plan: dict[str, Any], crashed: dt.datetime, alive: int) -> dict[str, Any]:
        instant = dt.datetime.fromisoformat(plan["instant"])
        recovered = check_records(_point_images(b, plan))
        written = guest.check()
        lost = _lost(written, recovered, guest.images, instant)
        rpo = (crashed - instant).total_seconds()
        say(
            f"   {written.last} records were written on a; the point of {rpo:.1f} s before the crash holds "
            f"{recovered.last}: {lost} missing of those it promises, {recovered.torn} torn."
        )
        return {
            "result": "ok" if recovered.ok and lost == 0 and alive > recovered.last else "failed",
            "rpo_seconds": round(rpo, 2),
            "points": len(_ask(b, "points", _VM)["points"]),
            "records_written": written.last,
            "records_recovered": recovered.last,
            "records_lost_after_point": lost,
            "torn": recovered.torn,
        }


def _lost(written: RecordsReport, recovered: RecordsReport, images: tuple[Path, ...], instant: dt.datetime) -> int:
    """Count records that were on the primary's disks when the point was taken and are not in the point."""
    promised = last_record_finished_before(images[0], instant.timestamp() - _CLOCK_SLACK)
    if promised == 0 or promised > written.last:
        raise VmReplicaError("demo-clock", "the records' times do not fit the point's", hint="is the clock being set?")
    return max(0, promised - recovered.last) + recovered.missing


def _point_images(b: Host, plan: dict[str, Any]) -> tuple[Path, ...]:
    directory = b.layout.store / plan["vm"] / "points" / plan["point"]
    return tuple(sorted(directory.glob("vd?.qcow2")))


def _ask(host: Host, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(host.vmreplica(*words, "--json", timeout=300).stdout)
    return answer


def _indented(text: str) -> None:
    say(f"   {text}")


if __name__ == "__main__":
    sys.exit(main())

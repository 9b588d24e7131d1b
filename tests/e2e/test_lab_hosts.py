"""Hosts of a lab: apart from each other and from the machine, joined by lines that can be cut and slowed, mortal."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmreplica.lab import Host, Lab
from vmreplica.lab.namespace import is_alive, keepers_of
from vmreplica.model.errors import Conflict, HypervisorError, NotFound, TimedOut

pytestmark = pytest.mark.main_job

_COUNT_BYTES = """
import socket, time
server = socket.create_server(("0.0.0.0", 9))
print("ready", flush=True)
connection, _ = server.accept()
begun, count = time.monotonic(), 0
while data := connection.recv(1 << 20):
    count += len(data)
print(count * 8 / 1e6 / (time.monotonic() - begun))
"""
_SEND_BYTES = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 9))
end = time.monotonic() + 3
while time.monotonic() < end:
    connection.sendall(bytes(65536))
"""
_KEEP_TALKING_TO = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 9))
connection.sendall(b"hello")
print("connected", flush=True)
connection.settimeout(3)
try:
    print("heard", connection.recv(10))
except TimeoutError:
    print("silence")
"""


def ping(host: Host, address: str, count: int = 1) -> list[float]:
    """Give the round trips in milliseconds."""
    shown = host.exec(["busybox", "ping", "-c", str(count), "-W", "1", address], check=False).stdout
    return [float(line.rpartition("time=")[2].split()[0]) for line in shown.splitlines() if "time=" in line]


def start_listening(host: Host) -> "subprocess.Popen[str]":
    argv = host.namespace.enter([sys.executable, "-c", _COUNT_BYTES])
    listener = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    return listener


def measure_mbit(sender: Host, receiver: Host) -> float:
    with start_listening(receiver) as listener:
        sender.exec([sys.executable, "-c", _SEND_BYTES, receiver.address])
        assert listener.stdout is not None
        return float(listener.stdout.read())


def root_network() -> tuple[str, str]:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = "\n".join(line.split(": ")[1] for line in links.splitlines())
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    return names, routes


def traces_of(directory: Path) -> list[str]:
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(directory) in line]
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return mounts + [line for line in processes.splitlines() if str(directory) in line]


def test_hosts_reach_each_other_and_nothing_else(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    assert len(ping(a, b.address, 2)) == 2
    assert len(ping(b, a.address, 2)) == 2
    assert a.exec(["ip", "route", "show", "default"]).stdout == ""


def test_a_host_sees_neither_the_disks_nor_the_processes_of_the_other(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    secret = b.layout.images / "secret"
    secret.write_text("b's")
    try:
        assert b.exec(["cat", str(secret)]).stdout == "b's"
        assert a.exec(["cat", str(secret)], check=False).returncode == 1
        assert len(a.exec(["pidof", "libvirtd"]).stdout.split()) == 1
    finally:
        secret.unlink()


def test_each_host_has_a_libvirt_of_its_own_that_answers_from_outside(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    uuids = set()
    for host in (a, b):
        shown = subprocess.run(
            ["virsh", "-c", host.layout.uri, "net-list", "--name"], capture_output=True, text=True, check=True
        )
        assert set(shown.stdout.split()) == {"lan", "isolated"}
        uuids.add(host.virsh("net-uuid", "lan").stdout.strip())
    assert len(uuids) == 2


def test_libvirtd_comes_back_after_a_restart_also_after_sigkill(bare_lab: Lab) -> None:
    host = bare_lab.host("a")
    for hard in (False, True):
        host.restart_libvirtd(hard=hard)
        assert "isolated" in host.virsh("net-list", "--name").stdout


def test_a_cut_is_silent_and_heals(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    bare_lab.cut("b", "a")
    assert ping(a, b.address) == []
    assert ping(b, a.address) == []
    assert "LOWER_UP" in a.exec(["ip", "link", "show", "to-b"]).stdout
    bare_lab.heal("a", "b")
    assert len(ping(a, b.address)) == 1


def test_a_slow_line_has_about_the_bandwidth_and_at_least_the_delay_it_was_given(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    bare_lab.slow("a", "b", mbit=20, ms=20)
    assert 40 <= min(ping(a, b.address, 3)) < 80
    assert 15 <= measure_mbit(a, b) <= 25
    bare_lab.cut("a", "b")
    assert ping(a, b.address) == []
    bare_lab.heal("a", "b")
    assert measure_mbit(b, a) > 200


def test_a_power_cut_ends_everything_at_once_and_says_no_farewell(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    inside = list(a.namespace.processes())
    with start_listening(a), subprocess.Popen(
        b.namespace.enter([sys.executable, "-c", _KEEP_TALKING_TO, a.address]), stdout=subprocess.PIPE, text=True
    ) as talker:  # fmt: skip
        assert talker.stdout is not None
        assert talker.stdout.readline() == "connected\n"
        bare_lab.crash("a")
        assert talker.stdout.read() == "silence\n"
    assert not [pid for pid in inside if is_alive(pid)]
    assert not a.up
    with pytest.raises(Conflict) as refused:
        a.exec(["true"])
    assert (refused.value.code, refused.value.hint) == ("lab-host-down", "start it: vmreplica lab start a")


def test_a_crashed_host_boots_with_its_disks_and_an_empty_run(bare_lab: Lab) -> None:
    a, b = bare_lab.hosts
    (a.layout.images / "kept").touch()
    (a.layout.run / "lost").touch()
    bare_lab.crash("a")
    bare_lab.start("a")
    assert len(ping(b, a.address)) == 1
    assert (a.layout.images / "kept").exists()
    assert not (a.layout.run / "lost").exists()
    assert "lan" in a.virsh("net-list", "--name").stdout


def test_starting_a_running_host_is_refused(bare_lab: Lab) -> None:
    with pytest.raises(Conflict) as refused:
        bare_lab.start("a")
    assert refused.value.code == "lab-host-up"


def test_a_command_given_up_leaves_nothing_running_on_the_host(bare_lab: Lab) -> None:
    host = bare_lab.host("a")
    with pytest.raises(TimedOut):
        host.exec(["sleep", "4321"], timeout=0.5)
    time.sleep(0.2)
    assert "sleep 4321" not in host.exec(["ps", "-eo", "args"]).stdout


def test_a_failing_command_tells_what_it_said(bare_lab: Lab) -> None:
    with pytest.raises(HypervisorError, match="failed to get domain 'nobody'"):
        bare_lab.host("a").virsh("start", "nobody")


def test_an_unknown_host_is_answered_with_the_known_ones(bare_lab: Lab) -> None:
    with pytest.raises(NotFound, match="a, b"):
        bare_lab.host("z")


def test_two_labs_live_side_by_side_touch_nothing_of_the_machine_and_leave_nothing(
    bare_lab: Lab, lab_dir: Path
) -> None:
    before = root_network()
    other = Lab.up(lab_dir, hosts=3, agents=False)
    assert root_network() == before
    assert len(ping(other.host("a"), other.host("c").address)) == 1
    bare_lab.cut("a", "b")
    assert len(ping(other.host("a"), other.host("b").address)) == 1
    other.cut("a", "c")
    assert len(ping(other.host("b"), other.host("c").address)) == 1
    other.down()
    assert (keepers_of(lab_dir), traces_of(lab_dir), lab_dir.exists()) == ([], [], False)
    assert root_network() == before
    assert bare_lab.host("a").up


def test_down_clears_up_after_an_up_that_was_killed_in_the_middle(lab_dir: Path) -> None:
    script = f"from pathlib import Path; from vmreplica.lab import Lab; Lab.up(Path({str(lab_dir)!r}), agents=False)"
    with subprocess.Popen([sys.executable, "-c", script]) as maker:
        while not (lab_dir / "keepers" / "a.pid").exists():
            assert maker.poll() is None
            time.sleep(0.01)
        maker.kill()
    assert Lab.remove(lab_dir)
    assert (keepers_of(lab_dir), traces_of(lab_dir), lab_dir.exists()) == ([], [], False)


def test_down_needs_none_of_the_labs_files(lab_dir: Path) -> None:
    Lab.up(lab_dir, hosts=1, agents=False)
    (lab_dir / "lab.json").write_text("{")
    (lab_dir / "keepers" / "a.pid").unlink()
    assert Lab.remove(lab_dir)
    assert (keepers_of(lab_dir), traces_of(lab_dir), lab_dir.exists()) == ([], [], False)


def test_lines_may_be_changed_by_several_at_once(bare_lab: Lab) -> None:
    changers = [threading.Thread(target=bare_lab.slow, args=("a", "b"), kwargs={"mbit": 50.0}) for _ in range(3)]
    for changer in changers:
        changer.start()
    for changer in changers:
        changer.join()
    a, b = bare_lab.hosts
    bare_lab.heal("a", "b")
    assert len(ping(a, b.address)) == 1

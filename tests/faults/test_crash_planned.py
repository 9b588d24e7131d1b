"""An agent, its libvirtd with it, or the whole host dies between two steps of a planned failover.

The VM is never on both sides, and ends on one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet
from job_kit import Blank, NewBlank, enable, inside, relation

from vmreplica.api.requests import PlannedRequest
from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Unreachable

pytestmark = pytest.mark.failover

_LAUNCHER: Final = Path(__file__).parents[1] / "e2e" / "killed_failover.py"
#: Before which step whose agent dies, and where the VM ends then.
_QUICK: Final = (("a", "started", "b"),)
_THOROUGH: Final = (
    ("a", "final", "a"),
    ("b", "resume", "b"),
    ("a", "preparing", "a"),
    ("a", "delta", "a"),
    ("a", "shutdown", "a"),
    ("a", "prepared", "a"),
    ("a", "settle", "b"),
    ("a", "start", "b"),
    ("b", "fence", "b"),
    ("b", "layer", "b"),
    ("b", "define", "b"),
    ("b", "start", "b"),
    ("b", "checkpoint", "b"),
    ("b", "started", "b"),
    ("b", "reverse", "b"),
)


#: The VM runs there while nothing is written down that would start it again: before the first step, and after the last
#: that has it not run.
_RAN: Final = {("a", "preparing"), ("b", "resume"), ("b", "started"), ("b", "reverse")}

#: The agent that began it is killed, and the one that follows sees it through.
_GONE_ON_WITH: Final = {("a", "settle"), ("a", "start"), ("a", "started")}


def _cases(quick: Sequence[tuple[str, str, str]], thorough: Sequence[tuple[str, str, str]]) -> list[ParameterSet]:
    return [pytest.param(*case) for case in quick] + [pytest.param(*case, marks=pytest.mark.slow) for case in thorough]


@pytest.mark.parametrize(("whose", "step", "ends"), _cases(_QUICK, _THOROUGH))
def test_a_killed_agent_leaves_one_vm_with_all_its_data(
    lab: Lab, new_blank: NewBlank, whose: str, step: str, ends: str
) -> None:
    vm = _killed_on_its_way(lab, new_blank, whose, step)
    lab.host(whose).start_agent()
    _expect_to_end(lab, vm, ends)
    if (whose, step) in _GONE_ON_WITH:
        assert until(lambda: "moved" in _events(lab.host("a"), vm), 30), _said(lab)


@pytest.mark.slow
@pytest.mark.parametrize(("whose", "step", "ends"), _QUICK + _THOROUGH)
def test_a_libvirtd_killed_with_its_agent_leaves_one_vm_with_all_its_data(
    lab: Lab, new_blank: NewBlank, whose: str, step: str, ends: str
) -> None:
    vm = _killed_on_its_way(lab, new_blank, whose, step)
    lab.host(whose).restart_libvirtd(hard=True)
    _expect_one_at_most(lab.host("a"), lab.host("b"), vm)
    lab.host(whose).start_agent()
    _expect_to_end(lab, vm, ends)


@pytest.mark.slow
@pytest.mark.parametrize(("whose", "step", "ends"), _QUICK + _THOROUGH)
def test_a_host_that_loses_its_power_leaves_one_vm_with_all_its_data(
    lab: Lab, new_blank: NewBlank, whose: str, step: str, ends: str
) -> None:
    vm = _killed_on_its_way(lab, new_blank, whose, step)
    lab.crash(whose)
    lab.start(whose)
    if (whose, step) in _RAN:
        # It ran, and fell with its host; nothing but a wish to autostart brings such a VM back by itself.
        assert until(lambda: _role(lab.host(whose), vm) == "primary", 120), _said(lab)
        lab.host(whose).ask("start", vm.name, timeout=120)
    _expect_to_end(lab, vm, ends)


def _killed_on_its_way(lab: Lab, new_blank: NewBlank, whose: str, step: str) -> Blank:
    vm = new_blank(lab.host("a"))
    enable(lab.host("a"), vm.name, every="24h")
    vm.write("vda", "1M", "64k", 7)
    _start_killing(lab.host(whose), step)
    _ask_to_move(lab.host("a"), vm)
    assert until(lambda: lab.host(whose).agent_pid is None, 120), "it was not killed"
    _expect_one_at_most(lab.host("a"), lab.host("b"), vm)
    return vm


def _expect_to_end(lab: Lab, vm: Blank, ends: str) -> None:
    a, b = lab.host("a"), lab.host("b")

    def settled() -> bool:
        _expect_one_at_most(a, b, vm)
        return _runs(lab.host(ends), vm)

    assert until(settled, 180), _said(lab)
    assert until(lambda: _at_peace(lab.host(ends), vm), 120), _said(lab)
    _expect_one_at_most(a, b, vm)
    assert until(lambda: _has_all(lab.host(ends), vm), 60), _said(lab)


def _start_killing(host: Host, step: str) -> None:
    host.stop_agent()
    host.start_agent([sys.executable, str(_LAUNCHER), step])


def _ask_to_move(host: Host, vm: Blank) -> None:
    """The guest of this VM hears nothing, so its plug is pulled at once."""
    body = PlannedRequest(patience=5, force=True)

    def asked() -> bool:
        try:
            AgentClient(host.layout.agent_socket).send("POST", vm_path(vm.name, "planned"), body, timeout=120)
        except Unreachable as error:
            # The agent may be killed while it answers; that of its peer may not listen yet.
            return error.code in {"agent-connection-lost", "agent-not-running"}
        return True

    assert until(asked, 60)


def _role(host: Host, vm: Blank) -> object:
    return relation(host, vm.name)["role"]


def _runs(host: Host, vm: Blank) -> bool:
    return vm.name in host.virsh("list", "--name").stdout.split()


def _expect_one_at_most(a: Host, b: Host, vm: Blank) -> None:
    assert not (_runs(a, vm) and _runs(b, vm)), "it runs on both sides"


def _at_peace(host: Host, vm: Blank) -> bool:
    """Tell whether nothing is under way any more: it is protected from where it runs, on images of its own."""
    found = relation(host, vm.name)
    return (found["role"], found["state"], found["stands_on"]) == ("primary", "replicating", 0)


def _events(host: Host, vm: Blank) -> list[str]:
    return [event["code"] for event in host.ask("history", vm.name)["events"]]


def _has_all(host: Host, vm: Blank) -> bool:
    """Read what was written; not to be read while the image is being folded, as another QEMU has it."""
    (disk,) = host.disk_paths(vm.name)
    act = ["qemu-io", "-U", "-r", "-c", "read -P 7 1M 64k", str(inside(host, disk))]
    done = subprocess.run(act, check=False, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert "verification failed" not in said, said
    return done.returncode == 0 and "read 65536/65536" in said


def _said(lab: Lab) -> str:
    return json.dumps({host.name: host.layout.agent_log.read_text()[-1500:] for host in lab.hosts})

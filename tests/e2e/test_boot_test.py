"""Boot tests: a copy comes to life or does not, its screen is kept, nothing is left of it, a failover goes first."""

import json
import sys
from pathlib import Path

import pytest
from job_kit import Blank, NewBlank, NewGuest, enable, points, reasons, refusal, relation, switch_off
from talker_kit import DISPLAY, drawn, expect_no_copy, store_of, talker, verdict

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.points


def test_a_copy_comes_to_life_and_its_verdict_and_screen_are_kept_with_the_point(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank, devices=DISPLAY)
    plan = b.ask("boot-test", vm.name, "--dry-run")
    assert [step["name"] for step in plan["steps"]] == [
        "hold", "layer", "define", "start", "wait", "picture", "keep", "remove",
    ]  # fmt: skip
    assert (plan["kind"], verdict(b, vm)) == ("boot-test", None)

    told = b.ask("boot-test", vm.name)["booted"]["result"]
    assert told["verdict"] == "alive", told
    assert told["sign"] == "a login prompt on the serial console"
    assert 0 < told["seconds"] < 60
    expect_no_copy(b, vm)
    assert verdict(b, vm) == told
    assert points(a, vm.name)[-1]["boot_test"] == told, "the primary's list has it too"
    assert "alive" in b.vmreplica("points", vm.name).stdout
    assert "came to life" in b.vmreplica("status", vm.name).stdout

    file = tmp_path / "screen.png"
    b.vmreplica("boot-test", vm.name, "--picture", str(file))
    width, height, ink = drawn(file.read_bytes())
    assert (width, height) >= (640, 400)
    assert ink > 1000, "there is a text on it"
    assert (store_of(b, vm) / "points" / told["point"] / "boot-test.png").read_bytes() == file.read_bytes()
    assert refusal(b, "boot-test", vm.name, "--picture", str(file))[1]["code"] == "file-exists"


def test_a_guest_without_life_fails_and_health_says_so(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank, "No boot device\x1b[2J")
    done = b.vmreplica("boot-test", vm.name, "--limit", "5s", check=False)
    assert done.returncode == 11, done.stdout
    assert "showed no sign of life within 5s" in done.stdout
    assert "the serial console ends with: No boot device" in done.stdout
    assert "no picture: it has no display" in done.stdout
    assert "\x1b" not in done.stdout
    expect_no_copy(b, vm)
    assert reasons(b, vm.name)["boot-test-failed"]["level"] == "warning"
    assert refusal(b, "boot-test", vm.name, "--picture", "none.png")[1]["code"] == "no-picture"
    told = b.ask("boot-test", vm.name, "--sign", "console:No boot device")["booted"]["result"]
    assert told["verdict"] == "alive"
    assert "boot-test-failed" not in reasons(b, vm.name)


@pytest.mark.slow
def test_it_waits_for_a_program_through_a_restart_of_libvirtd_and_one_runs_at_a_time(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank)
    program, up = tmp_path / "is-alive", tmp_path / "up"
    program.write_text(f"#!/bin/sh\nenv | grep ^VMREPLICA_ > {tmp_path}/env\nexec test -e {up}\n")
    program.chmod(0o755)
    begun = b.ask("boot-test", vm.name, "--sign", f"script:{program}", "--no-wait")
    assert until((tmp_path / "env").exists, 60)
    assert refusal(b, "boot-test", vm.name)[1]["code"] == "boot-test-running"
    (test,) = relation(b, vm.name)["tests"]
    assert (test["boot"], test["running"]) == (True, True)
    b.restart_libvirtd(hard=True)
    up.touch()
    assert until(lambda: verdict(b, vm) is not None, 60)
    found = verdict(b, vm)
    assert found is not None
    assert (found["verdict"], found["sign"]) == ("alive", f"{program} ended with 0")
    assert begun["what"] == f"boot test of {vm.name}"
    assert until(lambda: not relation(b, vm.name)["tests"], 30)
    expect_no_copy(b, vm)
    told = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert told["VMREPLICA_VM_UUID"] == vm.uuid
    assert (told["VMREPLICA_COPY"], told["VMREPLICA_COPY_UUID"]) == (test["name"], test["vm"])


def test_it_gives_way_to_a_failover_and_to_a_person(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank)
    _begin_endless(b, vm)
    b.ask("failover", vm.name, "--test", "--cancel")
    expect_no_copy(b, vm)
    assert until(lambda: relation(b, vm.name)["boot"] is not None, 30)
    assert relation(b, vm.name)["boot"]["last"] is None, "nothing was learned about the point"
    why = relation(b, vm.name)["boot"]["skipped"]["why"]
    assert "taken back" in why or "is gone" in why

    _begin_endless(b, vm)
    switch_off(vm)
    report = b.ask("failover", vm.name, "--yes")
    assert report["state"] == "failed-over"
    assert relation(b, vm.name)["tests"] == []
    assert b.guest_names() == [vm.name]
    assert "a failover takes precedence" in relation(b, vm.name)["boot"]["skipped"]["why"]
    assert verdict(b, vm) is None, "nothing was learned about the point"
    b.ask("failover", vm.name, "--cancel", "--yes")


def test_a_schedule_tests_by_itself_and_says_why_it_does_not(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank)
    shown = b.ask("boot-test", vm.name, "--every", "1d", "--sign", "console:web login")
    assert shown["boot"]["schedule"]["every"] == 86400
    assert until(lambda: verdict(b, vm) is not None, 60), relation(b, vm.name)
    boot = relation(b, vm.name)["boot"]
    assert boot["last"]["verdict"] == "alive"
    assert boot["due"] > boot["last"]["started"]

    a.virsh("setmaxmem", vm.name, "8T", "--config")
    a.ask("sync", vm.name)
    code, error = refusal(b, "boot-test", vm.name)
    assert (code, error["code"]) == (7, "memory-short")
    b.ask("boot-test", vm.name, "--every", "1d", "--at", "03:00")
    b.ask("boot-test", vm.name, "--off")
    assert relation(b, vm.name)["boot"]["schedule"] is None
    assert refusal(b, "boot-test", vm.name, "--point", "20200101T000000Z-00000000")[1]["code"] == "point-unknown"
    told = [
        json.loads(line) for line in b.vmreplica("events", vm.name, "--kind", "boot-test", "--json").stdout.splitlines()
    ]
    assert [event["code"] for event in told] == ["boot-test-passed"]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(("life",), id="while it waits"),
        pytest.param(
            ("record", "layer", "define", "start", "started", "picture", "keep", "remove"),
            id="elsewhere",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_at_any_step_it_leaves_nothing(lab: Lab, new_blank: NewBlank, steps: tuple[str, ...]) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank)
    for step in steps:
        b.stop_agent()
        b.start_agent([sys.executable, str(Path(__file__).with_name("killed_failover.py")), step])
        assert b.vmreplica("boot-test", vm.name, check=False).returncode == 8, "the agent died in it"
        b.start_agent()
        assert until(lambda: relation(b, vm.name)["tests"] == [], 30), step
        expect_no_copy(b, vm)
        boot = relation(b, vm.name)["boot"]
        if step == "remove":
            assert boot["last"] == verdict(b, vm) is not None, "it is kept before the copy goes"
        else:
            assert "the agent ended while" in boot["skipped"]["why"]
            assert verdict(b, vm) is None
    assert b.ask("boot-test", vm.name)["booted"]["result"]["verdict"] == "alive"
    assert relation(b, vm.name)["boot"]["skipped"] is None


@pytest.mark.slow
def test_without_libvirt_there_is_no_verdict_and_the_copy_goes_when_it_is_back(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank)
    _begin_endless(b, vm, limit="20s")
    b.stop_libvirtd()
    assert until(lambda: relation(b, vm.name)["boot"] is not None, 90)
    boot = relation(b, vm.name)["boot"]
    assert "does not answer" in boot["skipped"]["why"]
    assert boot["last"] is None
    assert [test["boot"] for test in relation(b, vm.name)["tests"]] == [True], "it could not be removed yet"
    b.start_libvirtd()
    # A call to a libvirtd that is just coming up may take all of its 30 s before the next look, 10 s later.
    assert until(lambda: relation(b, vm.name)["tests"] == [], 120), b.layout.agent_log.read_text()[-3000:]
    expect_no_copy(b, vm)

    _begin_endless(b, vm)
    b.stop_agent()
    assert b.guest_names() == [], "an agent that ends in order leaves no copy"
    b.start_agent()
    expect_no_copy(b, vm)
    assert "the agent ends" in relation(b, vm.name)["boot"]["skipped"]["why"]


@pytest.mark.slow
def test_a_real_guest_is_known_by_its_agent(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, agent=True)
    guest.stop()
    enable(a, guest.name, every="24h")
    told = b.ask("boot-test", guest.name, timeout=400)["booted"]["result"]
    assert (told["verdict"], told["sign"]) == ("alive", "the guest agent answers")
    assert relation(b, guest.name)["tests"] == []


def _begin_endless(b: Host, vm: Blank, limit: str = "1h") -> None:
    b.ask("boot-test", vm.name, "--sign", "console:never said", "--limit", limit, "--no-wait")
    assert until(lambda: [test["running"] for test in relation(b, vm.name)["tests"]] == [True], 60)


@pytest.mark.slow
def test_a_port_of_a_real_guest_is_found_over_an_isolated_network(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, network="lan", agent=True, idle=True)
    guest.stop()
    enable(a, guest.name, every="24h")
    b.ask("networks", guest.name, "--ip", "0=192.0.2.7/24")
    b.exec(["ip", "address", "add", "192.0.2.1/24", "dev", "br-isolated"])
    how = ("--sign", "tcp:7000", "--network", "isolated")
    assert refusal(b, "boot-test", guest.name, *how)[1]["code"] == "confirmation-needed"
    begun = b.ask("boot-test", guest.name, *how, "--yes", "--no-wait")
    assert until(lambda: [test["running"] for test in relation(b, guest.name)["tests"]] == [True], 60)
    (test,) = relation(b, guest.name)["tests"]
    program = {"path": "/bin/nc", "arg": ["-l", "-p", "7000"]}
    listen = json.dumps({"execute": "guest-exec", "arguments": program})
    assert until(lambda: not b.virsh("qemu-agent-command", test["name"], listen, check=False).returncode, 120)
    assert until(lambda: relation(b, guest.name)["boot"] is not None, 60), begun
    last = relation(b, guest.name)["boot"]["last"]
    assert (last["verdict"], last["network"]) == ("alive", "isolated"), last
    assert last["sign"] == "192.0.2.7 accepts connections to TCP port 7000"
    assert until(lambda: relation(b, guest.name)["tests"] == [], 30)
    b.exec(["ip", "address", "del", "192.0.2.1/24", "dev", "br-isolated"])

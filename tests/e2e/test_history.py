"""History, events and who is told of health, on two real hosts; the journal's file may come to any harm meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest
from job_kit import NewBlank, cycles, enable, points, wait_cycles, wait_healthy, wait_reason

from vmreplica.cli.client import AgentClient
from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = pytest.mark.points


def events(host: Host, vm: str, *more: str) -> list[dict[str, Any]]:
    """List what a host knows of a VM, oldest first."""
    lines = host.vmreplica("events", vm, "--limit", "1000", *more, "--json").stdout.splitlines()
    return [json.loads(line) for line in lines]


def codes(host: Host, vm: str, *more: str) -> list[str]:
    """List the codes of events, oldest first."""
    return [event["code"] for event in events(host, vm, *more)]


def hear(host: Host, heard: Path) -> None:
    """Let a program note in a file what it is told of health on a host."""
    hook = host.layout.images / "hook"
    hook.write_text(
        f'#!/bin/sh\necho "$VMREPLICA_NAME $VMREPLICA_WAS $VMREPLICA_HEALTH $VMREPLICA_REASONS" >> {heard}\n'
    )
    hook.chmod(0o755)
    config = host.layout.agent_config
    config.write_text(f'{config.read_text()}\n[health]\nhook = "{hook}"\n')
    host.stop_agent()
    host.start_agent()


def test_acts_runs_and_changes_of_health_are_known_on_both_sides_and_told(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    before, heard = a.layout.agent_config.read_text(), a.layout.images / "heard"
    try:
        hear(a, heard)
        vm = new_blank(a)
        vm.write("vda", "0", "1M", 7)
        enable(a, vm.name)
        a.ask("pause", vm.name)
        wait_reason(a, vm.name, "paused")
        assert until(lambda: f"{vm.name} normal warning paused" in _lines(heard), 30), _lines(heard)
        assert a.ask("health-test")["hook"]["ok"]
        a.ask("resume", vm.name)
        wait_healthy(a, vm.name)
        assert until(lambda: f"{vm.name} warning normal " in _lines(heard), 30), _lines(heard)
        assert codes(a, vm.name, "--kind", "health") == ["paused", "healthy"]
        assert a.vmreplica("status", vm.name, "--check").stdout.startswith("VMREPLICA OK")
    finally:
        a.layout.agent_config.write_text(before)
        a.stop_agent()
        a.start_agent()

    test = b.ask("failover", vm.name, "--test")["test"]
    b.ask("failover", vm.name, "--cancel", "--yes")
    acts = ("--kind", "enable", "--kind", "pause", "--kind", "resume")
    assert codes(a, vm.name, *acts) == ["enabled", "paused", "resumed"]
    assert codes(b, vm.name, "--kind", "test", "--kind", "cancel") == ["test-started", "cancelled"]
    assert events(b, vm.name, "--kind", "test")[0]["details"]["copy"] == test["name"]

    held = {point["point"] for point in points(b, vm.name)}
    received = b.ask("history", vm.name)["received"]
    assert {run["point"] for run in received} >= held
    assert all(run["side"] == "received" and run["seconds"] > 0 for run in received)
    sent = cycles(a, vm.name)[0]
    assert sent["rate"] > 0
    assert sent["waiting"]["queue"] >= 0
    assert "received" in b.vmreplica("history", vm.name).stdout
    metrics = _metrics(b)
    assert f'name="{vm.name}",side="received"' in metrics
    assert "vmreplica_store_free_bytes " in metrics


@pytest.mark.slow
def test_whatever_comes_to_the_journal_replication_and_history_go_on(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    journal = a.layout.state_dir / "journal.db"
    vm = new_blank(a)
    enable(a, vm.name)
    count = len(wait_cycles(a, vm.name, 2))
    assert count >= 2
    journal.write_bytes(b"\xa5" * journal.stat().st_size)
    wait_cycles(a, vm.name, 2)
    for file in journal.parent.glob("journal.db*"):
        file.unlink()
    wait_cycles(a, vm.name, 2)
    wait_healthy(a, vm.name)
    a.kill_agent()
    a.start_agent()
    wait_cycles(a, vm.name, 2)


def _lines(heard: Path) -> list[str]:
    return heard.read_text().splitlines() if heard.exists() else []


def _metrics(host: Host) -> str:
    return AgentClient(host.layout.agent_socket).get("/v1/metrics").decode()

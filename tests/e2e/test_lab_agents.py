"""Agents of a lab: started, stopped, killed, back after a power cut."""

import os
from pathlib import Path

import pytest

from vmreplica.lab import Lab
from vmreplica.model.errors import Unreachable

pytestmark = pytest.mark.main_job


def test_agents_answer_on_their_sockets_and_know_their_peer(lab: Lab) -> None:
    for name, peer in (("a", "b"), ("b", "a")):
        assert lab.host(name).ask("status")["host"] == name
        assert [known["name"] for known in lab.host(name).ask("peer", "list")["peers"]] == [peer]


def test_an_agent_is_killed_and_started_again(lab: Lab) -> None:
    host = lab.host("a")
    first = host.agent_pid
    assert first is not None
    assert Path(f"/proc/{first}").exists()
    host.kill_agent()
    assert host.agent_pid is None
    assert host.vmreplica("status", check=False).returncode == 8
    host.start_agent()
    assert host.agent_pid not in {None, first}
    assert host.ask("status")["host"] == "a"


def test_an_agent_that_is_asked_to_end_ends(lab: Lab) -> None:
    lab.host("b").stop_agent()
    assert lab.host("b").agent_pid is None


def test_a_host_comes_back_with_its_agent_and_its_peers(lab: Lab) -> None:
    pid = lab.host("a").agent_pid
    assert pid is not None
    lab.crash("a")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    lab.start("a")
    assert lab.host("a").ask("peer", "test", "b")["name"] == "b"


def test_an_agent_that_cannot_start_is_told_with_its_log(lab: Lab) -> None:
    host = lab.host("a")
    config = host.layout.agent_config.read_text()
    host.stop_agent()
    host.layout.agent_config.write_text("nonsense = 1\n")
    try:
        with pytest.raises(Unreachable, match="nonsense") as silent:
            host.start_agent()
    finally:
        host.layout.agent_config.write_text(config)
    assert silent.value.code == "lab-agent-silent"

"""Names as hostile as they come: through the API and onto terminals."""

import contextlib
import json
from pathlib import Path

import pytest
from api_kit import SmallAgent, relation, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.networks import parse_mapping
from vmreplica.cli.output import printable
from vmreplica.cli.show import relation_view, status_view
from vmreplica.model.errors import BadRequest, NotFound
from vmreplica.model.ids import VmName

pytestmark = pytest.mark.main_job

VM_NAMES = st.from_regex(
    TypeAdapter(VmName).json_schema()["pattern"].removesuffix("$") + r"\Z", alphabet=st.characters(codec="utf-8")
)


def test_every_possible_name_reaches_the_agent_unchanged(tmp_path: Path) -> None:
    agent = SmallAgent()
    client = AgentClient(tmp_path / "agent.sock")

    @settings(max_examples=80, deadline=None)
    @given(VM_NAMES)
    def check(name: str) -> None:
        with contextlib.suppress(NotFound):
            client.get(vm_path(name, "points"))
        assert agent.asked[-1] == ("points", name)
        with contextlib.suppress(NotFound):
            client.get("/v1/status", vm=name)
        assert agent.asked[-1] == ("status", name)

    with serving(agent, tmp_path / "agent.sock"):
        check()


@given(st.text())
def test_what_is_printed_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(character.isprintable() or character == "\n" for character in shown)
    if text.isprintable():
        assert shown == text


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(max_size=60))
def test_no_name_and_no_message_gets_control_of_the_terminal(name: str, phase: str) -> None:
    agent = SmallAgent()
    agent.relations = {"odd": relation(name, progress={**_PROGRESS, "phase": phase})}
    console = Console(width=200, force_terminal=False, color_system=None, markup=False)
    with console.capture() as capture:
        console.print(status_view(agent.status(None)))
        console.print(relation_view(agent.status("odd")))
    assert all(character.isprintable() or character == "\n" for character in capture.get())


_PROGRESS = {"done_bytes": 0, "total_bytes": 0, "wire_bytes": 0, "rate": 0.0, "seconds_left": None}


@given(st.dictionaries(st.text(min_size=1).filter(lambda text: "=" not in text), st.text(min_size=1)))
def test_a_network_map_is_read_as_it_was_written(networks: dict[str, str]) -> None:
    assert parse_mapping([f"{theirs}={ours}" for theirs, ours in networks.items()]) == networks


@given(st.lists(st.sampled_from(["", "lan", "=", "lan=", "=br0"]) | st.text()))
def test_a_network_map_with_a_pair_that_lacks_a_side_is_refused(pairs: list[str]) -> None:
    if all(pair.strip("=") and "=" in pair[1:-1] and pair[0] != "=" for pair in pairs):
        return
    with pytest.raises(BadRequest, match=r"is not FROM=TO|is given twice"):
        parse_mapping(pairs)


def test_json_keeps_a_name_as_it_is(tmp_path: Path) -> None:
    agent = SmallAgent()
    agent.relations = {"ü\u202e": relation("ü\u202e")}
    with serving(agent, tmp_path / "agent.sock"):
        answer = AgentClient(tmp_path / "agent.sock").get("/v1/status")
    assert json.loads(answer)["relationships"][0]["name"] == "ü\u202e"

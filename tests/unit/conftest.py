"""What several unit tests stand on."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_kit import SmallAgent, serving
from cli_kit import Program
from device_kit import loop_device

from vmreplica.cli import watch


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes block devices full of old bytes: ``device(size, sector=512, fill=b"...")``."""
    with contextlib.ExitStack() as stack:
        count = 0

        def make(size: int, *, sector: int = 512, fill: bytes = b"\xee") -> Path:
            nonlocal count
            count += 1
            backing = tmp_path / f"device{count - 1}"
            return stack.enter_context(loop_device(backing, size, sector=sector, fill=fill))

        yield make


@pytest.fixture
def agent() -> SmallAgent:
    """What the command line talks to."""
    return SmallAgent()


@pytest.fixture
def program(agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The command line, bound to the agent."""
    monkeypatch.setattr(watch, "_POLL", 0.01)
    with serving(agent, tmp_path / "agent.sock"):
        yield Program(tmp_path / "agent.sock")

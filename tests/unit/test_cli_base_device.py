"""``enable --base-device``: what is asked, what is sent, what is refused before anything is sent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_kit import SmallAgent, serving
from typer.testing import CliRunner

from vmreplica.cli.main import make_app
from vmreplica.cli.protect import parse_devices
from vmreplica.model.errors import BadRequest

pytestmark = pytest.mark.seeding


@pytest.fixture
def agent() -> SmallAgent:
    return SmallAgent()


@pytest.fixture
def socket(agent: SmallAgent, tmp_path: Path) -> Iterator[Path]:
    with serving(agent, tmp_path / "agent.sock"):
        yield tmp_path / "agent.sock"


def enable(socket: Path, *devices: str, yes: bool = False) -> tuple[int, str]:
    """Run the command without a terminal; tell its exit code and what it said."""
    words = [word for device in devices for word in ("--base-device", device)]
    words += ["--yes"] if yes else []
    command = ["enable", "db", "--to", "backup1", "--no-wait", *words]
    result = CliRunner().invoke(make_app(), command, env={"VMREPLICA_SOCKET": str(socket)})
    return result.exit_code, result.output


def test_a_device_is_erased_only_when_a_person_agreed(agent: SmallAgent, socket: Path) -> None:
    code, said = enable(socket, "vda=/dev/vg/db")
    assert code == 2
    assert "/dev/vg/db" in said
    assert "nobody to ask" in said
    assert "db" not in agent.relations
    code, said = enable(socket, "vda=/dev/vg/db", yes=True)
    assert code == 0, said
    assert "db" in agent.relations


@pytest.mark.parametrize(
    "device", ["vda=/etc/passwd", "vda=/dev/../etc/passwd", "vda=/dev/vg/../sda", "vda=/dev", "../x=/dev/vg/a"]
)
def test_a_name_that_leads_elsewhere_is_refused(agent: SmallAgent, socket: Path, device: str) -> None:
    assert enable(socket, device, yes=True)[0] == 2
    assert "db" not in agent.relations


def test_pairs_of_disk_and_device_are_read_by_the_first_equals_sign() -> None:
    assert parse_devices(["vda=/dev/vg/a=b", "vdb=/dev/x"]) == {"vda": "/dev/vg/a=b", "vdb": "/dev/x"}
    for wrong in (["vda"], ["=/dev/x"], ["vda="], ["vda=/dev/x", "vda=/dev/y"]):
        with pytest.raises(BadRequest, match="--base-device"):
            parse_devices(wrong)

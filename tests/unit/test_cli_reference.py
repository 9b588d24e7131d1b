"""The reference is made from the code and is current; the packaged samples fit the program."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmreplica.agent.config import Config, load_config
from vmreplica.cli.options import DEFAULT_SOCKET
from vmreplica.model.errors import VmReplicaError

pytestmark = pytest.mark.main_job

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "reference.py"


@pytest.fixture(scope="module", params=["commands.md", "configuration.md", "errors.md", "findings.md"])
def page(request: pytest.FixtureRequest) -> str:
    return (ROOT / "docs" / "reference" / str(request.param)).read_text(encoding="utf-8")


def test_the_reference_is_up_to_date() -> None:
    ran = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_every_table_of_the_reference_is_whole(page: str) -> None:
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")]
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert tables
    assert min(cells) >= 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_every_command_has_a_summary_and_examples() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    sections = [section for section in text.split("\n## ")[1:] if not section.startswith("vmreplica lab")]
    assert {"vmreplica enable", "vmreplica failover", "vmreplica peer join"} <= {s.split("\n")[0] for s in sections}
    for section in sections:
        name, _, rest = section.partition("\n")
        assert rest.strip().split("\n")[0].endswith("."), name
        assert f"\n{name} " in rest.partition("Examples:")[2] or rest.endswith(f"{name}\n```\n"), name


def test_every_family_of_errors_is_in_the_error_table() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    for family in VmReplicaError.__subclasses__():
        assert re.search(rf"\| `{family.__name__}` \| .* \| {family.exit_code} \| {family.status} \|", text)


def test_codes_are_found_in_whatever_way_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(
        'raise Corrupt(f"segment-{rule}", f"{what} is broken", hint=f"ask {whom}")\n'
        'raise errors.Refused("first" if odd else "second", message)\n'
        'raise Internal(code or "fallback", "a" "b", hint=HINT)\n'
        "raise NotFound(code, message)\n"
        'raise ValueError("not-ours")\n',
        encoding="utf-8",
    )
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import reference, pathlib\n"
        f"found = reference.collect(pathlib.Path({str(tmp_path)!r}))\n"
        "print({code: (sorted(w.families), w.messages, w.hints) for code, w in found.items()})"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == str(
        {
            "segment-...": (["Corrupt"], ["... is broken"], ["ask ..."]),
            "first": (["Refused"], [], []),
            "second": (["Refused"], [], []),
            "fallback": (["Internal"], ["ab"], []),
        }
    )


def test_the_sample_configuration_is_valid_and_its_comments_are_the_defaults(tmp_path: Path) -> None:
    sample = ROOT / "packaging" / "agent.toml.example"
    assert load_config(sample) == Config()
    bare = re.sub(r"^# (\w+ = )", r"\1", sample.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / "agent.toml").write_text(bare, encoding="utf-8")
    spoken = load_config(tmp_path / "agent.toml")
    assert spoken.model_dump(exclude={"agent": {"name"}}) == Config().model_dump(exclude={"agent": {"name"}})
    for name in Config.model_fields:
        section = getattr(spoken, name)
        assert section.model_fields_set == set(type(section).model_fields)


def test_the_command_line_looks_for_the_socket_where_the_agent_puts_it() -> None:
    assert Config().agent.socket == DEFAULT_SOCKET


class Unit(configparser.ConfigParser):
    """systemd's keys have capitals."""

    def optionxform(self, optionstr: str) -> str:
        """Leave them."""
        return optionstr


def test_the_service_runs_the_agent_and_leaves_libvirt_and_devices_reachable() -> None:
    unit = Unit(interpolation=None)
    unit.read(ROOT / "packaging" / "vmreplica.service", encoding="utf-8")
    service = unit["Service"]
    assert service["ExecStart"] == "vmreplica agent --config /etc/vmreplica/agent.toml"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()
    assert not {"ProtectClock", "PrivateDevices", "PrivateNetwork", "DevicePolicy"} & set(service)
    assert f"/run/{service['RuntimeDirectory']}" == str(DEFAULT_SOCKET.parent)
    assert f"/var/lib/{service['StateDirectory']}" == str(Config().agent.state_dir)

"""Addresses for a guest after a failover: as they are written, and the program that sets them, in a real kernel."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from api_kit import SmallAgent
from cli_kit import Program
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.failover.addresses import mac_of, program_for
from vmreplica.model.addresses import AddressPlan, parse_plan
from vmreplica.model.networks import MAX_NETWORKS, NetworksChange, changed_addresses

pytestmark = pytest.mark.failover

MAC = "52:54:00:aa:bb:cc"
_INTERFACES = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(lambda prefix: f"{address}/{prefix}")
)
_ADDRESSES = st.ip_addresses().map(str)


@given(
    st.lists(_INTERFACES, min_size=1, max_size=8), st.lists(_ADDRESSES, max_size=2), st.lists(_ADDRESSES, max_size=8)
)
def test_a_plan_is_read_as_it_was_spelled(addresses: list[str], gateways: list[str], dns: list[str]) -> None:
    plan = AddressPlan(addresses=tuple(addresses), gateways=tuple(gateways), dns=tuple(dns))
    assert parse_plan(str(plan)) == plan


@pytest.mark.parametrize(
    "text",
    [
        "", "192.0.2.7", "192.0.2.7/33", "192.0.2.7/24,gateway=", "192.0.2.7/24,gateway=x", "192.0.2.7/24,dns=1/2",
        "192.0.2.7/24,gateway=192.0.2.1,gateway=192.0.2.2", "192.0.2.7/24,metric=1", "fe80::1%eth0/64",
        "192.0.2.7/24;reboot", "192.0.2.7/24,dns=$(reboot)",
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        parse_plan(text)


def test_interfaces_are_named_by_mac_or_number() -> None:
    macs = ["52:54:00:00:00:01", "52:54:00:AA:BB:CC"]
    assert (mac_of("0", macs), mac_of("1", macs), mac_of("2", macs)) == (macs[0], MAC, None)
    assert (mac_of(MAC, macs), mac_of("52:54:00:00:00:09", macs)) == (MAC, None)


def test_addresses_are_changed_interface_by_interface() -> None:
    plan, other = parse_plan("192.0.2.7/24"), parse_plan("192.0.2.8/24")
    change = NetworksChange(addresses={MAC.upper(): plan}, keep_addresses=("0",))
    assert changed_addresses({"0": other, "1": other}, change) == {"1": other, MAC: plan}
    with pytest.raises(ValueError, match="0 is not given addresses"):
        changed_addresses({}, change)
    with pytest.raises(ValueError, match="at most"):
        changed_addresses({str(n): plan for n in range(MAX_NETWORKS + 1)}, NetworksChange())


def in_a_namespace(plan: AddressPlan, tmp_path: Path, mac: str = MAC) -> tuple[int, str, Any, Any]:
    """Run the program for Linux in a kernel with one network card; gives its end, the card, the routes."""
    program = program_for("debian", mac, plan)
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 198.51.100.1\n")
    script = f"""
        mount -t sysfs sysfs /sys; mount --bind {resolver} /etc/resolv.conf
        ip link add lan type veth peer name far; ip link set far up; ip link set lan address {MAC}; ip link set lan up
        ip address add 198.51.100.7/24 dev lan; ip route add default via 198.51.100.1 dev lan
        "$@"; code=$?
        ip -json address show dev lan > {tmp_path}/card
        ip -json route show > {tmp_path}/v4; ip -json -6 route show > {tmp_path}/v6
        exit $code
    """
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script, "sh", program.path, *program.args],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    card, *routes = (json.loads((tmp_path / name).read_text() or "[]") for name in ("card", "v4", "v6"))
    return done.returncode, done.stdout + done.stderr, card[0], [route for table in routes for route in table]


def test_the_guest_gets_its_addresses_routes_and_name_servers(tmp_path: Path) -> None:
    plan = parse_plan("192.0.2.7/24+2001:db8::7/64,gateway=192.0.2.1+2001:db8::1,dns=192.0.2.2+192.0.2.3")
    code, told, card, routes = in_a_namespace(plan, tmp_path)
    assert code == 0, told
    given = {f"{entry['local']}/{entry['prefixlen']}" for entry in card["addr_info"] if entry["scope"] == "global"}
    assert given == set(plan.addresses), "the old address is gone"
    assert {route["gateway"] for route in routes if route["dst"] == "default"} == set(plan.gateways)
    assert (tmp_path / "resolv.conf").read_text() == "nameserver 192.0.2.2\nnameserver 192.0.2.3\n"


def test_what_the_guest_does_not_have_is_told_and_leaves_it_alone(tmp_path: Path) -> None:
    code, told, card, _routes = in_a_namespace(parse_plan("192.0.2.7/24,dns=192.0.2.2"), tmp_path, "52:54:00:00:00:09")
    assert code == 1
    assert "no interface has the address 52:54:00:00:00:09" in told
    assert [entry["local"] for entry in card["addr_info"] if entry["family"] == "inet"] == ["198.51.100.7"]
    assert "198.51.100.1" in (tmp_path / "resolv.conf").read_text()


def test_windows_gets_a_program_of_its_own_with_the_addresses_as_texts() -> None:
    program = program_for("mswindows", MAC, parse_plan("192.0.2.7/24,gateway=192.0.2.1,dns=192.0.2.2"))
    assert program.path == "powershell.exe"
    for text in ("'52-54-00-AA-BB-CC'", "'192.0.2.7/24'", "'192.0.2.1'", "'192.0.2.2'"):
        assert text in program.args[-1].splitlines()[1]


def test_the_command_line_sends_addresses(program: Program, agent: SmallAgent) -> None:
    program("networks", "web", "--json", "--ip", f"{MAC}=192.0.2.7/24,gateway=192.0.2.1", "--keep-ip", "1")
    wanted = NetworksChange(addresses={MAC: parse_plan("192.0.2.7/24,gateway=192.0.2.1")}, keep_addresses=("1",))
    assert agent.asked[-1] == ("change_networks", "web", wanted)

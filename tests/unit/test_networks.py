"""The network map: places and VLAN tags as they are written, entry by entry, and what it makes of an interface."""

from typing import Any

import pytest
from definition_kit import DISK, built, domain, find, tree
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vmreplica.hypervisor.abilities import parse_abilities
from vmreplica.model.networks import MAX_NETWORKS, NetworksChange, Place, changed, parse_place

pytestmark = pytest.mark.failover

MAC = "52:54:00:11:22:33"
_NAMES = st.text("abcxyz019-_.:, ", min_size=1, max_size=12).filter(
    lambda name: ",vlan" not in name and not name.startswith("bridge:") and name != "none"
)
_TAGS = st.lists(st.integers(1, 4094), max_size=4, unique=True).map(tuple)


@given(st.sampled_from(["network", "bridge"]), _NAMES, _TAGS)
def test_a_place_is_read_as_it_was_spelled(kind: Any, name: str, tags: tuple[int, ...]) -> None:
    place = Place(kind, name, tags)
    assert parse_place(str(place)) == place


@pytest.mark.parametrize(
    "text",
    ["", "bridge:", "none,vlan=1", "x,vlan=0", "x,vlan=4095", "x,vlan=1+1", "x,vlan=", "x,vlan=a", "x,vlan=1,vlan=2"],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"VLAN|names no network"):
        parse_place(text)
    with pytest.raises(ValidationError):
        NetworksChange(networks={"lan": text})


def test_entries_are_added_changed_and_removed_and_the_others_stay() -> None:
    change = NetworksChange(networks={"lan": "bridge:b1", "new": "none"}, unmap=("dmz",))
    assert changed({"lan": "x", "dmz": "y", "other": "z"}, change) == {"lan": "bridge:b1", "other": "z", "new": "none"}
    with pytest.raises(ValueError, match="dmz is not in"):
        changed({}, change)
    full = {f"n{number}": "x" for number in range(MAX_NETWORKS)}
    with pytest.raises(ValueError, match="at most"):
        changed(full, NetworksChange(networks={"one more": "x"}))


def nic(kind: str, source: str, tags: str = "") -> str:
    vlan = f"<vlan>{''.join(f'<tag id={tag!r}/>' for tag in tags.split('+'))}</vlan>" if tags else ""
    return f"<interface type='{kind}'><mac address='{MAC}'/><source {source}/>{vlan}<model type='virtio'/></interface>"


@pytest.mark.parametrize(
    ("tags", "mapping", "place", "expected", "told"),
    [
        # Tags stay where libvirt sets them, and nowhere else, unless a person says so.
        ("20", {}, "ovs0", "20", False),
        ("20+30", {}, "ovs0", "20+30", False),
        ("20", {"br0": "bridge:ovs0"}, "ovs0", "20", False),
        ("20", {"br0": "bridge:ovs0,vlan=99"}, "ovs0", "99", False),
        ("20", {"br0": "bridge:br7"}, "br7", "", True),
        ("20", {"br0": "lan,vlan=7"}, "lan", "7", False),
        ("20", {"br0": "none", "br0,vlan=20": "bridge:ovs0"}, "ovs0", "20", False),
        ("30", {"br0": "lan", "br0,vlan=20": "bridge:ovs0"}, "lan", "", True),
        ("", {"br0": "bridge:ovs0,vlan=5+6"}, "ovs0", "5+6", False),
        ("20", {"br0": "bridge:br7,vlan=9"}, None, "", True),
        ("20", {"br0": "none"}, None, "", True),
        ("4095", {}, "ovs0", "", False),
    ],
)
def test_vlan_tags_are_the_map_s_or_are_kept_where_they_are_understood(
    tags: str, mapping: dict[str, str], place: str | None, expected: str, told: bool
) -> None:
    source = "bridge='ovs0'" if not mapping else "bridge='br0'"
    definition = built(
        domain(DISK + nic("bridge", source, tags)),
        network_map=mapping, bridges={"br7", "ovs0"}, vlan_bridges={"ovs0"}, networks={"lan"},
    )  # fmt: skip
    made = find(definition, "devices/interface")
    source_of = made.find("source")
    if place is None:
        assert (made.get("type"), source_of) == ("user", None)
    else:
        assert source_of is not None
        assert place in source_of.attrib.values()
    assert "+".join(tag.get("id", "") for tag in made.iterfind("vlan/tag")) == expected
    assert (made.find("vlan[@trunk='yes']") is not None) == ("+" in expected)
    assert (made.find("virtualport[@type='openvswitch']") is not None) == (place == "ovs0")
    assert any(MAC in note for note in definition.notes) == told


def test_hostile_tags_and_ports_of_a_peer_are_not_taken_over() -> None:
    evil = (
        "<interface type='bridge'><source bridge='br0'/><vlan><tag id='1;evil'/><tag/></vlan>"
        "<virtualport type='802.1Qbg'><parameters managerid='evil'/></virtualport></interface>"
    )
    definition = built(domain(DISK + evil), bridges={"br0"})
    assert "evil" not in definition.xml
    assert tree(definition).find("devices/interface/vlan") is None


def test_bridges_of_open_vswitch_are_bridges_too() -> None:
    abilities = parse_abilities(
        "<domainCapabilities/>", "<capabilities/>", domain_type="kvm", networks=(), bridges=("br0",),
        vlan_bridges=("ovs0",),
    )  # fmt: skip
    assert (abilities["bridges"], abilities["vlan_bridges"]) == ({"br0", "ovs0"}, {"ovs0"})

"""Network maps turned round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.failover.reverse import inverse_networks

pytestmark = pytest.mark.failover

NAMES = st.sampled_from(["lan", "dmz", "br0", "br-dmz", "isolated", "x"])
#: A network of this host, a bridge of it, or nowhere.
PLACES = st.one_of(NAMES, NAMES.map("bridge:{}".format), st.just("none"))


@given(st.dictionaries(NAMES, PLACES, max_size=6))
def test_a_way_back_leads_where_somebody_came_from_and_to_nobody_else(mapping: dict[str, str]) -> None:
    for ours, theirs in inverse_networks(mapping).items():
        came = [source for source, place in mapping.items() if place.removeprefix("bridge:") == ours]
        assert came == [theirs.removeprefix("bridge:")]
        assert theirs.startswith("bridge:") == mapping[came[0]].startswith("bridge:")


@given(st.dictionaries(NAMES, PLACES, max_size=6))
def test_there_and_back_and_there_again_is_the_same_as_far_as_it_goes(mapping: dict[str, str]) -> None:
    back = inverse_networks(mapping)
    assert set(inverse_networks(back).items()) <= set(mapping.items())
    assert inverse_networks(inverse_networks(back)) == back

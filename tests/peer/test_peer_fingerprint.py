"""Asking a peer for block hashes over real connections."""

from http.client import HTTPConnection

import numpy as np
import pytest
import zstandard
from peer_kit import OFFER, POINT, Host, KeepingService, code_of
from point_kit import OTHER_VM, VM

from vmreplica.model.errors import Unreachable
from vmreplica.peer.client import PeerClient
from vmreplica.peer.hashes import MAX_HASHES, Hashes, pack_hashes, unpack_hashes

pytestmark = pytest.mark.seeding

PATH = f"/peer/v1/replicas/{VM}/points/{POINT}/fingerprint/vda"


class MiscountingService(KeepingService):
    """Answers with one hash too many."""

    def fingerprint(  # noqa: PLR0917
        self, peer: str, vm: str, point: str, target: str, key: int, first_block: int, blocks: int
    ) -> Hashes:
        """See PeerService."""
        return super().fingerprint(peer, vm, point, target, key, first_block, blocks + 1)


@pytest.fixture(autouse=True)
def _protected(client: PeerClient) -> None:
    client.offer(VM, OFFER)


def test_hashes_arrive_as_the_service_tells_them(alpha: Host, client: PeerClient) -> None:
    found = client.fingerprint(VM, POINT, "vda", 0xFFFF_FFFF_FFFF_FFFF, 1 << 40, 1000)
    assert found.dtype == np.uint64
    assert found.tolist() == list(range(1 << 40, (1 << 40) + 1000))
    assert alpha.service.asked == [(POINT, "vda", 0xFFFF_FFFF_FFFF_FFFF, 1 << 40, 1000)]


def test_the_largest_range_fits_an_answer_even_if_nothing_compresses(alpha: Host, client: PeerClient) -> None:
    alpha.service.stride = 0x9E37_79B9_7F4A_7C15
    found = client.fingerprint(VM, POINT, "vda", 1, 7, MAX_HASHES)
    stride = np.uint64(alpha.service.stride)
    assert np.array_equal(found, np.arange(7, 7 + MAX_HASHES, dtype=np.uint64) * stride)


def test_an_unknown_vm_is_the_service_s_matter(client: PeerClient) -> None:
    assert code_of(client.fingerprint, OTHER_VM, POINT, "vda", 1, 0, 1) == "replica-unknown"


@pytest.mark.parametrize("alpha", [MiscountingService], indirect=True)
def test_an_answer_of_another_length_is_not_believed(client: PeerClient) -> None:
    with pytest.raises(Unreachable, match="something else than was asked for"):
        client.fingerprint(VM, POINT, "vda", 1, 0, 5)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "key=1&first=0",
        "key=1&blocks=1",
        "first=0&blocks=1",
        "key=&first=0&blocks=1",
        "key=0x1&first=0&blocks=1",
        "key=11111111111111111&first=0&blocks=1",
        "key=1&first=-1&blocks=1",
        "key=1&first=9999999999999999&blocks=1",
        "key=1&first=0&blocks=0",
        f"key=1&first=0&blocks={MAX_HASHES + 1}",
    ],
)
def test_a_range_or_key_that_cannot_be_is_refused_before_anything_is_asked(
    query: str, alpha: Host, raw: HTTPConnection
) -> None:
    raw.request("GET", f"{PATH}?{query}")
    response = raw.getresponse()
    assert (response.status, b"parameter-invalid" in response.read()) == (400, True)
    assert alpha.service.asked == []


def test_hashes_on_the_wire_are_little_endian_and_zeroes_cost_nothing() -> None:
    hashes = np.zeros(MAX_HASHES, np.uint64)
    hashes[1] = 0x0102
    packed = pack_hashes(hashes)
    assert len(packed) < 4096
    assert zstandard.ZstdDecompressor().decompress(packed)[:16] == bytes(8) + b"\x02\x01" + bytes(6)
    assert np.array_equal(unpack_hashes(packed, MAX_HASHES), hashes)


@pytest.mark.parametrize(
    "body", [b"", b"noise", pack_hashes(np.zeros(4, np.uint64)), pack_hashes(np.zeros(5, np.uint64))[:-1]]
)
def test_what_is_no_frame_of_that_many_hashes_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"hashes|frame"):
        unpack_hashes(body, 5)

"""The list of paired hosts."""

import datetime as dt
from pathlib import Path

import pytest

from vmreplica.model.errors import Conflict, Corrupt, NotFound
from vmreplica.peer.book import Peer, PeerBook

pytestmark = pytest.mark.main_job


def _peer(name: str, digit: str) -> Peer:
    paired = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
    return Peer(name=name, host_id=digit * 32, addresses=("192.0.2.7:7432",), ca_pem="pem", paired=paired)


def test_peers_are_found_by_name_and_id_after_a_restart(tmp_path: Path) -> None:
    PeerBook(tmp_path / "peers.json").add(_peer("beta", "b"))
    book = PeerBook(tmp_path / "peers.json")
    assert book.all() == (_peer("beta", "b"),)
    assert book.by_name("beta") == book.by_id("b" * 32)
    assert book.by_name("beta").report().addresses == ("192.0.2.7:7432",)


def test_a_removed_peer_is_gone_for_good_and_the_book_says_that_it_changed(tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json")
    book.add(_peer("beta", "b"))
    before = book.generation
    assert book.remove("beta") == _peer("beta", "b")
    assert book.generation > before
    assert PeerBook(tmp_path / "peers.json").all() == ()


def test_a_peer_is_updated_under_its_id(tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json")
    book.add(_peer("beta", "b"))
    book.add(_peer("gamma", "b"))
    assert [peer.name for peer in book.all()] == ["gamma"]


def test_two_peers_cannot_have_one_name(tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json")
    book.add(_peer("beta", "b"))
    with pytest.raises(Conflict) as refusal:
        book.add(_peer("beta", "c"))
    assert refusal.value.code == "peer-name-taken"
    assert book.all() == (_peer("beta", "b"),)


def test_an_unknown_name_is_answered_with_the_known_ones_or_with_how_to_pair(tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json")
    assert "vmreplica peer invite on beta" in _hint(book, "beta")
    book.add(_peer("backup-host", "b"))
    assert _hint(book, "zulu") == "paired with this host: backup-host"


def _hint(book: PeerBook, name: str) -> str:
    with pytest.raises(NotFound) as refusal:
        book.by_name(name)
    return refusal.value.hint


def test_an_unknown_name_is_answered_with_close_ones(tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json")
    book.add(_peer("backup-host", "b"))
    with pytest.raises(NotFound, match="bakup-host") as refusal:
        book.by_name("bakup-host")
    assert refusal.value.code == "peer-unknown"
    assert "backup-host" in refusal.value.hint
    with pytest.raises(NotFound):
        book.by_id("c" * 32)
    with pytest.raises(NotFound):
        book.remove("nobody")


@pytest.mark.parametrize("content", ["", "{}}", '{"peers":[{"name":"../x"}]}', '{"format":"other"}'])
def test_a_damaged_book_is_told_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "peers.json").write_text(content)
    with pytest.raises(Corrupt) as refusal:
        PeerBook(tmp_path / "peers.json")
    assert refusal.value.code == "peer-book-damaged"
    assert (tmp_path / "peers.json").read_text() == content

"""Addresses, and the words of the connection test."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

import vmreplica
from vmreplica.cli.show import test_view as peer_test_view
from vmreplica.model.report import PeerTest
from vmreplica.model.units import GiB, MiB
from vmreplica.peer.measuring import findings
from vmreplica.peer.wire import Hello, split_address

pytestmark = pytest.mark.main_job

_NOW = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
_TEST = PeerTest(
    name="beta",
    host_id="b" * 32,
    address="192.0.2.7:7432",
    version=vmreplica.__version__,
    certificate_expires=_NOW + dt.timedelta(days=300),
    clock_difference_seconds=0.1,
    round_trip_ms=1.0,
    send_bytes_per_second=100 * MiB,
    store_free_bytes=500 * GiB,
)
_HELLO = Hello(name="beta", host_id="b" * 32, version=vmreplica.__version__, now=_NOW, free_bytes=500 * GiB)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7", "192.0.2.7", 7432),
        ("192.0.2.7:80", "192.0.2.7", 80),
        ("alpha.example.org:7000", "alpha.example.org", 7000),
        ("[2001:db8::7]", "2001:db8::7", 7432),
        ("[fe80::1%eth0]:7433", "fe80::1%eth0", 7433),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)


@pytest.mark.parametrize("text", ["", ":7432", "a b:1", "host:0", "host:65536", "http://host", "2001:db8::7", "a/b"])
def test_other_text_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        split_address(text)


@given(st.text())
def test_any_text_is_an_address_with_a_valid_port_or_told_to_be_none(text: str) -> None:
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536


def test_a_good_connection_has_no_findings() -> None:
    assert findings(_TEST, _HELLO, _NOW) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clock_difference_seconds": 12.0}, "12s ahead"),
        ({"clock_difference_seconds": -12.0}, "12s behind"),
        ({"certificate_expires": _NOW + dt.timedelta(days=29)}, "ends in 29d"),
        ({"round_trip_ms": 800.0}, "800 ms"),
        ({"send_bytes_per_second": 100_000.0}, "per second"),
        ({"store_free_bytes": GiB}, "only 1.0 GiB are free"),
        ({"version": "0.0.1"}, "version 0.0.1"),
        ({"name": "old-name"}, "calls itself beta"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_connection_is_said_in_words(changes: dict[str, object], words: str) -> None:
    (finding,) = findings(_TEST.model_copy(update=changes), _HELLO, _NOW)
    assert words in finding


def test_a_clock_difference_within_the_round_trip_s_doubt_is_no_finding() -> None:
    test = _TEST.model_copy(update={"clock_difference_seconds": 5.1, "round_trip_ms": 400.0})
    assert findings(test, _HELLO, _NOW) == ()


@pytest.mark.parametrize("version", ["", "1\x1b[2J", "1.0\n", "1 0", "x" * 65])
def test_a_version_that_is_none_is_not_taken_from_another_host(version: str) -> None:
    with pytest.raises(ValidationError):
        Hello(name="beta", host_id="b" * 32, version=version, now=_NOW, free_bytes=1)


def test_what_a_connection_test_found_is_shown_without_control_characters() -> None:
    text = Console(width=200, no_color=True)
    with text.capture() as shown:
        text.print(peer_test_view(_TEST.model_copy(update={"version": "1\x1b[2J", "address": "a\x1b[1m"})))
    assert "\x1b" not in shown.get()
    assert "1\\x1b[2J" in shown.get()

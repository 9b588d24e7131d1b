"""The text of an invitation."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.model.errors import BadRequest
from vmreplica.peer.token import Token, decode, encode

pytestmark = pytest.mark.main_job

_TOKEN = Token(
    name="alpha",
    host_id="0123456789abcdef" * 2,
    addresses=("192.0.2.7:7432", "[2001:db8::7]:7432", "alpha.example.org"),
    expires=dt.datetime(2026, 11, 22, 10, 15, tzinfo=dt.UTC),
    secret="s" * 43,
    for_name="beta",
)
_TEXT = encode(_TOKEN)


def test_a_token_is_one_line_and_reads_back_as_it_was() -> None:
    assert set(_TEXT) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert decode(_TEXT) == _TOKEN


@given(st.integers(min_value=0, max_value=len(_TEXT) - 1))
def test_a_token_cut_anywhere_is_unreadable(length: int) -> None:
    with pytest.raises(BadRequest) as refusal:
        decode(_TEXT[:length])
    assert refusal.value.code == "token-unreadable"


def _read(text: str) -> Token | None:
    try:
        return decode(text)
    except BadRequest:
        return None


@given(st.integers(min_value=0, max_value=len(_TEXT) - 1), st.characters(codec="ascii"))
def test_a_changed_character_never_makes_another_token(position: int, letter: str) -> None:
    changed = _TEXT[:position] + letter + _TEXT[position + 1 :]
    assert _read(changed) in {None, _TOKEN}


@given(st.text())
def test_any_text_is_a_token_or_told_to_be_none(text: str) -> None:
    with pytest.raises(BadRequest):
        decode("vmr1." + text)


def test_line_breaks_that_a_terminal_put_into_a_token_do_no_harm() -> None:
    assert decode(f"  {_TEXT[:80]}\r\n {_TEXT[80:]}\n") == _TOKEN

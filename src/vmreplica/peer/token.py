"""The text of an invitation: one line that survives copying, or says clearly that it did not. Pure."""

import base64
import hashlib
from typing import Annotated, Final

from pydantic import AwareDatetime, Field, ValidationError

from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import HostId, HostName
from vmreplica.model.shape import Shape
from vmreplica.peer.wire import Addresses

_PREFIX: Final = "vmr1"
_MAX_TEXT: Final = 16384


class Token(Shape):
    """What an invitation carries from the inviting host to the joining one."""

    name: HostName
    host_id: HostId
    addresses: Annotated[Addresses, Field(min_length=1)]
    expires: AwareDatetime
    secret: Annotated[str, Field(min_length=32, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")]
    for_name: HostName | None = None


def encode(token: Token) -> str:
    """Write a token as ``vmr1.<base64url of JSON>.<checksum>``."""
    payload = base64.urlsafe_b64encode(token.model_dump_json().encode()).decode().rstrip("=")
    return f"{_PREFIX}.{payload}.{_checksum(payload)}"


def decode(text: str) -> Token:
    """Read a token; white space and line breaks that a terminal put into it are dropped.

    Raises:
        BadRequest: it is no token, truncated, or damaged (``token-unreadable``).
    """
    prefix, *rest = "".join(text[:_MAX_TEXT].split()).split(".")
    if prefix != _PREFIX:
        raise _unreadable(f"a token begins with {_PREFIX}.")
    if len(rest) != 2 or _checksum(rest[0]) != rest[1]:  # noqa: PLR2004 - payload and checksum
        raise _unreadable("a part of it is missing or changed")
    try:
        return Token.model_validate_json(base64.urlsafe_b64decode(rest[0] + "=" * (-len(rest[0]) % 4)))
    except (ValueError, ValidationError):
        raise _unreadable("it was made by another version of vmreplica") from None


def _checksum(payload: str) -> str:
    return hashlib.sha256(f"{_PREFIX}.{payload}".encode(errors="replace")).hexdigest()[:8]


def _unreadable(why: str) -> BadRequest:
    return BadRequest(
        "token-unreadable",
        f"the token cannot be read: {why}",
        hint="copy the whole line that `vmreplica peer invite` printed on the other host",
    )

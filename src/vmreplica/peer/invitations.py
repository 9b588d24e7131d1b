"""Invitations that this host has given out: good once, for 15 minutes, known by the hash of their secret only."""

import collections
import datetime as dt
import hashlib
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, ValidationError

from vmreplica.fsio import publish_bytes
from vmreplica.model.errors import BadRequest, Refused
from vmreplica.model.ids import HostName
from vmreplica.model.report import Invitation
from vmreplica.model.shape import Shape
from vmreplica.peer import token as token_text
from vmreplica.peer.identity import Clock, Identity, utc_now

LIFE: Final = dt.timedelta(minutes=15)
#: How long it is remembered that an invitation was used or has expired, to say so.
_MEMORY: Final = dt.timedelta(days=1)
_MAX_FAILURES: Final = 20
_FAILURE_WINDOW: Final = dt.timedelta(minutes=1)

_AGAIN: Final = "make a new one on the inviting host: vmreplica peer invite"


class _Pending(Shape):
    secret_sha256: str
    expires: AwareDatetime
    for_name: HostName | None
    used: bool = False


class _Stored(Shape):
    format: Literal["vmreplica-invitations-1"] = "vmreplica-invitations-1"
    invitations: tuple[_Pending, ...] = ()


class Invitations:
    """All invitations of this host. Thread-safe; a use is durable before it is answered."""

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._pending = {each.secret_sha256: each for each in _load(path).invitations}
        self._failures: collections.deque[dt.datetime] = collections.deque(maxlen=_MAX_FAILURES)

    def invite(self, identity: Identity, addresses: Sequence[str], for_name: HostName | None = None) -> Invitation:
        """Make an invitation.

        Args:
            identity: of this host.
            addresses: where the other host reaches this one, best first.
            for_name: the only host that may use it; None for whoever has it.

        Raises:
            BadRequest: no addresses, or names and addresses that are none.
            NoSpace: the file system is full.
        """
        secret = secrets.token_urlsafe(32)
        expires = (self._clock() + LIFE).replace(microsecond=0)
        text = token_text.encode(_token(identity, addresses, expires, secret, for_name))
        with self._lock:
            self._keep(_Pending(secret_sha256=_hash(secret), expires=expires, for_name=for_name))
        return Invitation(token=text, expires=expires)

    def check(self, secret: str, name: HostName) -> None:
        """Check, without using it up, that an invitation is good for a host.

        Raises:
            Refused: as ``redeem``.
        """
        with self._lock:
            self._find(secret, name)

    def redeem(self, secret: str, name: HostName) -> None:
        """Use an invitation up. Of several attempts at once, one succeeds.

        Raises:
            Refused: ``token-unknown``, ``token-used``, ``token-expired``, ``token-for-another-host``, or
                ``too-many-attempts`` after 20 failures within a minute.
            NoSpace: the file system is full; the invitation is still good.
        """
        with self._lock:
            self._keep(self._find(secret, name).model_copy(update={"used": True}))

    def _find(self, secret: str, name: HostName) -> _Pending:
        self._limit_guessing()
        try:
            return _usable(self._pending.get(_hash(secret)), name, self._clock())
        except Refused:
            self._failures.append(self._clock())
            raise

    def _limit_guessing(self) -> None:
        full = len(self._failures) == _MAX_FAILURES
        if full and self._clock() - self._failures[0] < _FAILURE_WINDOW:
            raise Refused(
                "too-many-attempts",
                f"more than {_MAX_FAILURES} failed pairings within a minute",
                hint="wait a minute, then try again",
                kind="transient",
            )

    def _keep(self, changed: _Pending) -> None:
        now = self._clock()
        kept = {each.secret_sha256: each for each in self._pending.values() if now - each.expires < _MEMORY}
        kept[changed.secret_sha256] = changed
        stored = _Stored(invitations=tuple(kept.values()))
        publish_bytes(self._path, stored.model_dump_json(indent=1).encode())
        self._pending = kept


def _token(
    identity: Identity, addresses: Sequence[str], expires: dt.datetime, secret: str, for_name: HostName | None
) -> token_text.Token:
    try:
        return token_text.Token(
            name=identity.name,
            host_id=identity.host_id,
            addresses=tuple(addresses),
            expires=expires,
            secret=secret,
            for_name=for_name,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise BadRequest(
            "invitation-impossible",
            f"no invitation can be made: {'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            hint="set `advertise` under [agent] to the addresses by which the other host reaches this one",
        ) from None


def _usable(pending: _Pending | None, name: HostName, now: dt.datetime) -> _Pending:
    if pending is None:
        raise Refused("token-unknown", "this host has not given out this token, or long ago", hint=_AGAIN)
    if pending.used:
        raise Refused("token-used", "this token was used before; each is good once", hint=_AGAIN)
    if now >= pending.expires:
        raise Refused("token-expired", f"this token expired at {pending.expires.isoformat()}", hint=_AGAIN)
    if pending.for_name not in {None, name}:
        raise Refused("token-for-another-host", f"this token is for {pending.for_name}, not for {name}", hint=_AGAIN)
    return pending


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _load(path: Path) -> _Stored:
    try:
        return _Stored.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        # Invitations live for minutes: with a damaged file they are all void, and new ones can be made.
        return _Stored()

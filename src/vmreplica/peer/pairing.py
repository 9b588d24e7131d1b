"""Making two hosts known to each other, from either side."""

import datetime as dt
import ssl
from collections.abc import Sequence
from http.client import HTTPException

from pydantic import TypeAdapter, ValidationError

from vmreplica.model.body import Buffers
from vmreplica.model.errors import BadRequest, Refused, Unreachable, VmReplicaError
from vmreplica.model.units import format_duration
from vmreplica.peer import certificates
from vmreplica.peer import token as token_text
from vmreplica.peer.book import Peer, PeerBook, name_taken
from vmreplica.peer.client import CONNECT_TIMEOUT, READ_TIMEOUT, read_answer, require_success
from vmreplica.peer.identity import Clock, Identity, trusting_only, utc_now
from vmreplica.peer.invitations import Invitations
from vmreplica.peer.transport import Connection, Connections, failure_of
from vmreplica.peer.wire import MAX_PEM, PREFIX, Addresses, PairAnswer, PairRequest, proof_text

__all__ = ["Invitations", "accept", "join"]

_INVITE_AGAIN = "make a new token there: vmreplica peer invite"


def accept(
    identity: Identity, book: PeerBook, invitations: Invitations, addresses: Sequence[str], wanted: PairRequest
) -> PairAnswer:
    """Take in a host that answers an invitation of this one.

    Nothing is told, and the invitation is not used up, before its secret was checked.

    Raises:
        Refused: as ``Invitations.redeem``; the host is this one; or it shows another's CA (``ca-not-owned``).
        Conflict: another host has its name.
        BadRequest: its CA certificate is unusable.
    """
    invitations.check(wanted.secret, wanted.name)
    now = utc_now()
    ca = certificates.read_ca(wanted.ca_pem, now)
    certificates.require_signature(ca, proof_text(identity.host_id, wanted.secret), wanted.proof)
    host_id = certificates.host_id_of(ca)
    _require_other_host(identity, host_id)
    _require_free_name(identity, book, wanted.name, host_id)
    others = (peer.ca_pem for peer in book.all() if peer.host_id != host_id)
    certificates.require_unlike(ca, [identity.ca_pem, *others])
    invitations.redeem(wanted.secret, wanted.name)
    book.add(Peer(name=wanted.name, host_id=host_id, addresses=wanted.addresses, ca_pem=wanted.ca_pem, paired=now))
    return PairAnswer(name=identity.name, host_id=identity.host_id, addresses=tuple(addresses))


def join(
    token: str, identity: Identity, book: PeerBook, my_addresses: Sequence[str], *, clock: Clock = utc_now
) -> Peer:
    """Pair with the host that made a token; a host that is known already is updated.

    Args:
        token: what ``vmreplica peer invite`` printed there.
        identity: of this host.
        book: where the other host is written down.
        my_addresses: where it reaches this host, best first.
        clock: tells the time.

    Raises:
        BadRequest: ``token-unreadable``.
        Refused: ``token-of-this-host``, ``token-for-another-host``, ``token-expired``, or what the other host says.
        Conflict: ``peer-name-taken``, here or there.
        Unreachable: none of the token's addresses answers.
        TimedOut: one accepts connections and does not answer.
    """
    invitation = token_text.decode(token)
    _require_usable(invitation, identity, clock())
    _require_free_name(identity, book, invitation.name, invitation.host_id)
    address, ca_pem = _find_host(invitation, clock())
    request = PairRequest(
        secret=invitation.secret,
        name=identity.name,
        ca_pem=identity.ca_pem,
        proof=identity.sign(proof_text(invitation.host_id, invitation.secret)),
        addresses=_valid(my_addresses),
    )
    answer = _ask(invitation, address, ca_pem, request)
    peer = Peer(
        name=answer.name,
        host_id=invitation.host_id,
        addresses=_merged(address, invitation.addresses, answer.addresses),
        ca_pem=ca_pem,
        paired=clock(),
    )
    book.add(peer)
    return peer


def _require_usable(invitation: token_text.Token, identity: Identity, now: dt.datetime) -> None:
    _require_other_host(identity, invitation.host_id)
    if invitation.for_name not in {None, identity.name}:
        raise Refused(
            "token-for-another-host",
            f"this token is for {invitation.for_name}, this host is {identity.name}",
            hint=f"on {invitation.name}: vmreplica peer invite --for {identity.name}",
        )
    if now >= invitation.expires:
        since = format_duration((now - invitation.expires).total_seconds())
        raise Refused(
            "token-expired",
            f"this token of {invitation.name} expired {since} ago by the clock of this host",
            hint=f"{_INVITE_AGAIN}; if it is new, the clocks of the hosts differ: synchronise them (NTP)",
        )


def _require_other_host(identity: Identity, host_id: str) -> None:
    if host_id == identity.host_id:
        raise Refused(
            "token-of-this-host",
            f"this token was made on this host, {identity.name}",
            hint="run vmreplica peer join on the other host",
        )


def _require_free_name(identity: Identity, book: PeerBook, name: str, host_id: str) -> None:
    if name == identity.name:
        raise name_taken(name)
    book.require_free_name(name, host_id)


def _find_host(invitation: token_text.Token, now: dt.datetime) -> tuple[str, str]:
    """Find the address at which the very host of a token answers, and get its CA certificate."""
    failures: list[VmReplicaError] = []
    for address in invitation.addresses:
        try:
            return address, _fetch_ca(address, invitation, now)
        except VmReplicaError as error:
            failures.append(error)
    worst = next((error for error in failures if isinstance(error, Refused)), failures[0])
    told = "; ".join(error.message for error in failures)
    raise type(worst)(worst.code, f"{invitation.name} cannot be reached: {told}", hint=worst.hint)


def _fetch_ca(address: str, invitation: token_text.Token, now: dt.datetime) -> str:
    # Whoever answers is not believed: the CA must have the host id of the token, and must have issued the
    # certificate of this very connection.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = Connection(address, context, invitation.host_id, CONNECT_TIMEOUT)
    try:
        connection.connect()
        connection.request("GET", f"{PREFIX}/ca")
        pem = connection.getresponse().read(MAX_PEM).decode("ascii", "replace")
    except (OSError, HTTPException) as error:
        raise failure_of(error, address, CONNECT_TIMEOUT) from error
    finally:
        connection.close()
    _require_same_host(pem, connection.leaf, invitation, address, now)
    return pem


def _require_same_host(pem: str, leaf: bytes, invitation: token_text.Token, address: str, now: dt.datetime) -> None:
    try:
        ca = certificates.read_ca(pem, now)
    except VmReplicaError as error:
        raise Unreachable(
            "peer-answer-unreadable", f"{address}: no agent answers there ({error.message})", hint=_INVITE_AGAIN
        ) from error
    if certificates.host_id_of(ca) != invitation.host_id or not certificates.issued_by(leaf, ca):
        raise Refused(
            "token-for-another-host",
            f"{address} is answered by another host than the one that made the token",
            hint=f"check `advertise` under [agent] on {invitation.name}, and who answers at {address}",
        )


def _ask(invitation: token_text.Token, address: str, ca_pem: str, request: PairRequest) -> PairAnswer:
    context = trusting_only(ca_pem)
    with Connections(
        name=invitation.name,
        addresses=[address],
        context=lambda: context,
        server_name=invitation.host_id,
        connect_timeout=CONNECT_TIMEOUT,
    ) as connections:
        answer = connections.exchange(
            "POST",
            f"{PREFIX}/pair",
            Buffers(request.model_dump_json().encode()),
            content_type="application/json",
            timeout=READ_TIMEOUT,
        )
    return read_answer(PairAnswer, require_success(answer, invitation.name), invitation.name)


def _valid(addresses: Sequence[str]) -> tuple[str, ...]:
    try:
        return TypeAdapter[tuple[str, ...]](Addresses).validate_python(tuple(addresses))
    except ValidationError as error:
        raise BadRequest(
            "address-invalid",
            f"the addresses of this host: {error.errors(include_url=False)[0]['msg']}",
            hint="set `advertise` under [agent] to addresses by which peers reach this host",
        ) from None


def _merged(first: str, *others: Sequence[str]) -> tuple[str, ...]:
    """Put the address that works first and drop repetitions."""
    every = [first, *(address for addresses in others for address in addresses)]
    return tuple(dict.fromkeys(every))[:16]

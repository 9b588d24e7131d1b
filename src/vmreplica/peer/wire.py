"""What agents say to each other beside the shapes of the model: greetings, pairing, limits, addresses."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from vmreplica.model.ids import CheckpointName, HostId, HostName, NetworkName, PointId, VmId, VmName
from vmreplica.model.keep import Keep
from vmreplica.model.policy import MAX_INTERVAL, MIN_INTERVAL
from vmreplica.model.shape import Shape
from vmreplica.model.units import KiB, MiB

PREFIX: Final = "/peer/v1"
DEFAULT_PORT: Final = 7432

#: The largest segment body: 16 MiB of data, 65 536 records of 16 bytes, and a head of 128 bytes.
MAX_BODY: Final = 17 * MiB + 128
#: The largest JSON body: a point's opening carries a domain definition of at most 1 MiB, escaped, and the machine's own
#: files of at most 2 MiB, in base64.
MAX_JSON: Final = 8 * MiB
#: The largest body of the throughput test.
MAX_SINK: Final = 64 * MiB
MAX_PEM: Final = 16 * KiB
#: The largest request for pairing: all that a host may send before anybody knows it.
MAX_PAIR: Final = 64 * KiB

_ADDRESS: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?"
)
_MAX_PORT: Final = 65535


def split_address(address: str) -> tuple[str, int]:
    """Read ``host``, ``host:port`` or ``[v6]:port`` into host and port (7432 when none is given).

    Raises:
        ValueError: the text is not an address.
    """
    match = _ADDRESS.fullmatch(address)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port <= _MAX_PORT:
        raise ValueError(f"{address!r} is not an address; write host:port, for example 192.0.2.7:{DEFAULT_PORT}")
    return match["six"] or match["name"], port


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, Field(max_length=300), AfterValidator(_checked_address)]
Addresses = Annotated[tuple[Address, ...], Field(max_length=16)]
#: What a version looks like (PEP 440), whoever says it: it is shown on terminals.
Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+!_-]{1,64}$")]


class Hello(Shape):
    """Who a host is and how it stands."""

    name: HostName
    host_id: HostId
    version: Version
    now: AwareDatetime
    #: Bytes free on the file system of its store.
    free_bytes: Annotated[int, Field(ge=0)]


class RunsHere(Shape):
    """Whether a VM whose replica belongs to the asking host runs on the answering one, and its epoch there."""

    vm: VmId
    runs: bool
    epoch: Annotated[int, Field(ge=0)]


class ReverseRequest(Shape):
    """What the host that a VM was failed over to asks of its old primary: be the replica, with your old disks."""

    vm: VmId
    name: VmName
    #: That of the failover; the old primary must have a lower one.
    epoch: Annotated[int, Field(ge=1)]
    interval: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)]
    keep: Keep
    #: What the VM was started from.
    point: PointId | None = None
    #: Tracks what the VM wrote since that point.
    checkpoint: CheckpointName | None = None
    planned: bool = False
    #: Which network of the old primary stands for which one of the asking host.
    network_map: Annotated[dict[NetworkName, NetworkName], Field(max_length=64)] = Field(default_factory=dict)


class PairRequest(Shape):
    """The joining host's half of a pairing, with the secret out of the token."""

    secret: Annotated[str, Field(min_length=1, max_length=128)]
    name: HostName
    ca_pem: Annotated[str, Field(max_length=MAX_PEM)]
    #: What the key of this CA signed: ``proof_text`` (base64, ECDSA with SHA-256). A CA certificate alone is public.
    proof: Annotated[str, Field(max_length=256)]
    addresses: Addresses


def proof_text(inviting: HostId, secret: str) -> bytes:
    """Spell what a joining host signs, so that nobody can be paired in another's name."""
    return f"vmreplica pair {inviting} {secret}".encode(errors="replace")


class PairAnswer(Shape):
    """The inviting host's half; its CA was fetched and checked before."""

    name: HostName
    host_id: HostId
    addresses: Addresses

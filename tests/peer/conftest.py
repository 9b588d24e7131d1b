"""Two hosts on loopback: ``alpha`` serves, ``beta`` is paired with it and asks.

A test asks for another service of alpha's with ``@pytest.mark.parametrize("alpha", [Service], indirect=True)``, or a
module by a fixture ``service``.
"""

from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from peer_kit import Host, KeepingService, raw_connection

from vmreplica.peer.client import PeerClient


@pytest.fixture
def service() -> type[KeepingService]:
    """What alpha serves with, where a test does not say."""
    return KeepingService


@pytest.fixture
def alpha(tmp_path: Path, request: pytest.FixtureRequest, service: type[KeepingService]) -> Iterator[Host]:
    with Host(tmp_path / "alpha", "alpha", getattr(request, "param", service)).serve() as host:
        yield host


@pytest.fixture
def beta(tmp_path: Path, alpha: Host) -> Host:
    host = Host(tmp_path / "beta", "beta")
    host.joins(alpha)
    return host


@pytest.fixture
def client(alpha: Host, beta: Host) -> Iterator[PeerClient]:
    with beta.client_of(alpha) as made:
        yield made


@pytest.fixture
def raw(alpha: Host, beta: Host) -> Iterator[HTTPConnection]:
    """A connection of beta's on which anything can be said."""
    connection = raw_connection(alpha, beta.identity.client_context(alpha.identity.ca_pem))
    yield connection
    connection.close()

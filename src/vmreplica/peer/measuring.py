"""The connection test: what it takes to know whether replication to a peer will work, in figures and in words."""

import datetime as dt
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import vmreplica
from vmreplica.model.body import Body, Buffers
from vmreplica.model.report import PeerTest
from vmreplica.model.units import GiB, KiB, MiB, format_duration, format_size
from vmreplica.peer.book import Peer
from vmreplica.peer.certificates import expiry_of
from vmreplica.peer.transport import Answer
from vmreplica.peer.wire import Hello

_ROUND_TRIPS: Final = 5
_MAX_SEND_SECONDS: Final = 3.0
_SEND_SIZES: Final = (64 * KiB, 256 * KiB, MiB, 4 * MiB, 16 * MiB)

_MAX_CLOCK_DIFFERENCE: Final = 5.0
_MIN_CERTIFICATE_LIFE: Final = dt.timedelta(days=30)
_MIN_RATE: Final = MiB
_MIN_ROOM: Final = 10 * GiB
_MAX_ROUND_TRIP_MS: Final = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a peer says of itself, and how the connection to it looks."""

    hello: Hello
    address: str
    certificate_expires: dt.datetime
    round_trip: float
    #: Seconds that its clock is ahead of ours, wrong by half a round trip at most.
    clock_ahead: float


def greet(ask_hello: Callable[[], tuple[Hello, Answer]]) -> Greeting:
    """Look at a connection without loading it.

    Args:
        ask_hello: asks the peer once.
    """
    ask_hello()  # opens the connection: not a round trip
    asked, started = dt.datetime.now(dt.UTC), time.monotonic()
    hello, answer = ask_hello()
    seconds = time.monotonic() - started
    return Greeting(
        hello=hello,
        address=answer.address,
        certificate_expires=expiry_of(answer.leaf),
        round_trip=seconds,
        clock_ahead=(hello.now - asked).total_seconds() - seconds / 2,
    )


def measure(peer: Peer, ask_hello: Callable[[], tuple[Hello, Answer]], send: Callable[[Body], None]) -> PeerTest:
    """Measure a connection.

    Args:
        peer: the host at the other end.
        ask_hello: asks it once.
        send: sends it a body that it throws away.
    """
    hello, answer = ask_hello()  # opens the connection: not a round trip
    trips = [_round_trip(ask_hello) for _ in range(_ROUND_TRIPS)]
    # The quickest trip tells the time best: the answer was made within it.
    clock_difference = min(trips)[1]
    test = PeerTest(
        name=peer.name,
        host_id=hello.host_id,
        address=answer.address,
        version=hello.version,
        certificate_expires=expiry_of(answer.leaf),
        clock_difference_seconds=round(clock_difference, 3),
        round_trip_ms=round(statistics.median(trip for trip, _ in trips) * 1000, 3),
        send_bytes_per_second=round(_send_rate(send)),
        store_free_bytes=hello.free_bytes,
    )
    return test.model_copy(update={"findings": findings(test, hello, dt.datetime.now(dt.UTC))})


def findings(test: PeerTest, hello: Hello, now: dt.datetime) -> tuple[str, ...]:
    """Say in words what in a test a person should look at; nothing when all is well."""
    found = [_about_name(test, hello), _about_clock(test), _about_certificate(test, now), _about_line(test)]
    if test.store_free_bytes < _MIN_ROOM:
        found.append(f"only {format_size(test.store_free_bytes)} are free where {test.name} keeps copies")
    if test.version != vmreplica.__version__:
        found.append(f"{test.name} runs version {test.version}, this host {vmreplica.__version__}")
    return tuple(text for text in found if text)


def _about_name(test: PeerTest, hello: Hello) -> str:
    if hello.name == test.name:
        return ""
    return f"{test.name} calls itself {hello.name} now: pair again to use that name"


def _about_clock(test: PeerTest) -> str:
    difference = test.clock_difference_seconds
    if abs(difference) - test.round_trip_ms / 2000 <= _MAX_CLOCK_DIFFERENCE:
        return ""
    side = "ahead" if difference > 0 else "behind"
    return f"the clock of {test.name} is {format_duration(abs(difference))} {side}: synchronise both clocks (NTP)"


def _about_certificate(test: PeerTest, now: dt.datetime) -> str:
    left = test.certificate_expires - now
    if left >= _MIN_CERTIFICATE_LIFE:
        return ""
    days = format_duration(left.total_seconds())
    return f"the certificate of {test.name} ends in {days}: its agent renews it when it can write its state directory"


def _about_line(test: PeerTest) -> str:
    if test.round_trip_ms > _MAX_ROUND_TRIP_MS:
        return f"a round trip takes {test.round_trip_ms:.0f} ms: short intervals cannot be kept"
    if test.send_bytes_per_second < _MIN_RATE:
        return f"only {format_size(test.send_bytes_per_second)} per second get through: use long intervals"
    return ""


def _round_trip(ask_hello: Callable[[], tuple[Hello, Answer]]) -> tuple[float, float]:
    """Tell the seconds of one round trip, and how far the peer's clock is ahead of ours."""
    asked, started = dt.datetime.now(dt.UTC), time.monotonic()
    hello, _ = ask_hello()
    seconds = time.monotonic() - started
    return seconds, (hello.now - asked).total_seconds() - seconds / 2


def _send_rate(send: Callable[[Body], None]) -> float:
    """Send larger and larger bodies as long as the next one fits the time; the last one counts."""
    block = os.urandom(64 * KiB)
    rate, begun = 0.0, time.monotonic()
    for size in _SEND_SIZES:
        started = time.monotonic()
        if rate and started - begun + size / rate > _MAX_SEND_SECONDS:
            break
        send(Buffers(*[block] * (size // len(block))))
        rate = size / max(time.monotonic() - started, 1e-6)
    return rate

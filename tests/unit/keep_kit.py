"""Points and rules of retention for property tests."""

import datetime as dt
import random
from collections.abc import Sequence

from hypothesis import strategies as st

from vmreplica.model.keep import Keep
from vmreplica.model.keeping import PointFacts
from vmreplica.model.units import GiB, MiB

NOW = dt.datetime(2026, 11, 22, 14, 30, tzinfo=dt.UTC)


def rules(*, space: bool = True) -> st.SearchStrategy[Keep]:
    """Rules that a person may ask for."""
    fields = {
        "last": st.none() | st.integers(1, 40),
        "within": st.none() | st.integers(1, 100_000),
        "hourly": st.integers(0, 30),
        "daily": st.integers(0, 14),
        "weekly": st.integers(0, 8),
        "monthly": st.integers(0, 6),
        "space": st.none() | st.integers(MiB, GiB) if space else st.none(),
    }
    coherent = st.fixed_dictionaries(fields).filter(
        lambda chosen: any(value for name, value in chosen.items() if name != "space")
    )
    return coherent.map(lambda chosen: Keep(**chosen))


def fact(
    instant: dt.datetime, *, kind: str = "delta", stored: int = MiB, pins: Sequence[str] = (), holds: Sequence[str] = ()
) -> PointFacts:
    """One point."""
    name = f"{instant.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}-00000000"
    return PointFacts(id=name, instant=instant, kind=kind, stored_bytes=stored, pins=tuple(pins), holds=tuple(holds))  # type: ignore[arg-type]


@st.composite
def histories(draw: st.DrawFn) -> list[PointFacts]:
    """Points of up to two months, close together or far apart, some pinned or held, the first maybe a seed."""
    step = draw(st.sampled_from([5, 300, 3600, 86400]))
    ages = draw(st.lists(st.integers(0, 60), max_size=40, unique=True))
    source = random.Random(draw(st.integers(0, 1 << 32)))
    seeded = draw(st.booleans())
    return [
        fact(
            NOW - dt.timedelta(seconds=age * step),
            kind="seed" if seeded and number == 0 else "delta",
            stored=source.randrange(64 * MiB),
            pins=("audit",) if source.random() < 0.1 else (),
            holds=("test failover: it runs",) if source.random() < 0.1 else (),
        )
        for number, age in enumerate(sorted(ages, reverse=True))
    ]

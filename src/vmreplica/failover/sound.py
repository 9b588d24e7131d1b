"""A damaged point is not used unless a person says so: what is refused, and what is offered in its place."""

from collections.abc import Sequence

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import PointId
from vmreplica.model.point import PointSummary

#: Good points that are named.
_OFFERED = 5


def require_sound(name: str, points: Sequence[PointSummary], point: PointId, *, even_damaged: bool) -> tuple[str, ...]:
    """Refuse a damaged point.

    Args:
        name: of the VM.
        points: its points, newest first.
        point: the chosen one, one of them.
        even_damaged: a person wants it all the same.

    Returns:
        Warnings: what is wrong with it.

    Raises:
        Corrupt: ``point-damaged``: names disk and place, and the good points.
    """
    (chosen,) = (known for known in points if known.point == point)
    if not chosen.damaged:
        return ()
    if even_damaged:
        return tuple(f"point {point} is damaged: {text}" for text in chosen.damaged)
    good = [known.point for known in points if known.bootable and not known.damaged]
    said = f"the newest good point is {good[0]}: --point {good[0]}" if good else "no point of it is good"
    others = f" (others: {', '.join(good[1:_OFFERED])})" if len(good) > 1 else ""
    raise Corrupt(
        "point-damaged",
        f"point {point} of {name} is damaged: {chosen.damaged[0]}",
        hint=f"{said}{others}; to use it as it is: --even-damaged",
        kind="operator",
    )

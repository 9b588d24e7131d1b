"""The option that says which recovery points are kept."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vmreplica.model.keep import Keep

KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="RULES",
        help="Which recovery points are kept: 24 (so many of the newest), or any of last=, within=, hourly=, daily=, "
        "weekly=, monthly= and space= with commas between, as within=1h,hourly=24,daily=7,space=100G. Not given: as "
        "before, at first within=1h,hourly=24,daily=7.",
    ),
]


def read_keep(text: str | None) -> "Keep | None":
    """Read rules as typed; None when there are none.

    Raises:
        BadRequest: ``keep-invalid``.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.keep import parse_keep  # noqa: PLC0415 - slow to import

    if text is None:
        return None
    try:
        return parse_keep(text)
    except ValueError as error:
        raise BadRequest(
            "keep-invalid", f"--keep: {error}", hint="--keep 24, --keep within=1h,hourly=24,daily=7"
        ) from error

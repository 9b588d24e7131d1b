"""Ways of bringing the first copy to the replica: what is asked for."""

from typing import Annotated, Final, Literal

from pydantic import Field

from vmreplica.model.errors import BadRequest
from vmreplica.model.export import ExportSeed
from vmreplica.model.shape import Shape

_EXPORT: Final = "export:"


class NetworkSeed(Shape):
    """Send everything over the network, and give up another way that was begun."""

    kind: Literal["network"] = "network"


SeedRequest = Annotated[ExportSeed | NetworkSeed, Field(discriminator="kind")]


def parse_seed(text: str) -> ExportSeed | NetworkSeed:
    """Read ``network`` or ``export:DIR``.

    Raises:
        BadRequest: ``seed-invalid``.
    """
    if text == "network":
        return NetworkSeed()
    if text.startswith(_EXPORT):
        try:
            return ExportSeed(directory=text.removeprefix(_EXPORT))
        except ValueError:
            raise _invalid(f"{text!r} does not name an absolute path") from None
    raise _invalid(f"{text!r} is no way of seeding")


def _invalid(what: str) -> BadRequest:
    return BadRequest("seed-invalid", f"--seed: {what}", hint="--seed export:/mnt/usb/web, or network")

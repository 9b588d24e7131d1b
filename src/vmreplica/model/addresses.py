"""What addresses a VM's interfaces get after a failover, where the replica's network has others."""

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from vmreplica.model.shape import Shape

#: The interface's MAC address, or its number as ``vmreplica networks`` shows it.
InterfaceKey = Annotated[
    str, StringConstraints(pattern=r"^([0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}|[0-9]{1,2})$"), AfterValidator(str.lower)
]
_MOST: Final = 8
_PART: Final = re.compile(r"(gateway|dns)=(.+)")


def _interface(text: str) -> str:
    return str(ipaddress.ip_interface(text))


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _with_prefix(text: str) -> str:
    if "/" not in text:
        raise ValueError(f"{text!r} lacks its prefix length: write {text}/24")
    return _interface(text)


_Text = Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9A-Fa-f.:/]+$")]

_Interface = Annotated[_Text, AfterValidator(_with_prefix)]
_Address = Annotated[_Text, AfterValidator(_address)]


class AddressPlan(Shape):
    """The addresses of one interface; each with its prefix length."""

    addresses: Annotated[
        tuple[Annotated[_Text, AfterValidator(_with_prefix)], ...], Field(min_length=1, max_length=_MOST)
    ]
    gateways: Annotated[tuple[Annotated[_Text, AfterValidator(_address)], ...], Field(max_length=2)] = ()
    dns: Annotated[tuple[Annotated[_Text, AfterValidator(_address)], ...], Field(max_length=_MOST)] = ()

    def __str__(self) -> str:
        """Spell it as a person writes it."""
        parts = ["+".join(self.addresses)]
        parts += [
            f"{name}={'+'.join(value)}" for name, value in (("gateway", self.gateways), ("dns", self.dns)) if value
        ]
        return ",".join(parts)


class AddressingRecord(Shape):
    """How the addresses of a failed-over VM get into its guest."""

    #: The hold of the failover that they are for.
    hold: str
    since: AwareDatetime
    state: Literal["waiting", "done", "failed"] = "waiting"
    #: Why it failed.
    told: str = ""


def parse_plan(text: str) -> AddressPlan:
    """Read ``ADDRESS/PREFIX[+ADDRESS/PREFIX],gateway=ADDRESS,dns=ADDRESS[+ADDRESS]``.

    Raises:
        ValueError: it is not like that.
    """
    first, *rest = text.split(",")
    given: dict[str, tuple[str, ...]] = {}
    for part in rest:
        match = _PART.fullmatch(part)
        if match is None or match[1] in given:
            raise ValueError(f"{part!r} is not gateway=ADDRESS or dns=ADDRESS, each given once")
        given[match[1]] = tuple(match[2].split("+"))
    return AddressPlan(addresses=tuple(first.split("+")), gateways=given.get("gateway", ()), dns=given.get("dns", ()))

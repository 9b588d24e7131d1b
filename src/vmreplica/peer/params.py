"""The variable parts of request paths: validated before anything is looked up, since some become file names."""

from typing import Annotated, Final

from aiohttp import web
from pydantic import StringConstraints, TypeAdapter, ValidationError

from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.peer.hashes import MAX_HASHES
from vmreplica.peer.service import CopyFate

_Number = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]

#: 64 bits in hex.
_Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,16}$")]
_Block = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,14})$")]

_VM: Final = TypeAdapter[str](VmId)
_POINT: Final = TypeAdapter[str](PointId)
_TARGET: Final = TypeAdapter[str](DiskTarget)
_NUMBER: Final = TypeAdapter[str](_Number)
_KEY: Final = TypeAdapter[str](_Key)
_BLOCK: Final = TypeAdapter[str](_Block)
_FATE: Final = TypeAdapter[CopyFate](CopyFate)


def vm(request: web.Request) -> VmId:
    """Tell which VM a request is about."""
    return _checked(_VM, request.match_info["vm"], "VM")


def point(request: web.Request) -> PointId:
    """Tell which point a request is about."""
    return _checked(_POINT, request.match_info["point"], "recovery point")


def target(request: web.Request) -> DiskTarget:
    """Tell which disk a request is about."""
    return _checked(_TARGET, request.match_info["target"], "disk")


def number(request: web.Request) -> int:
    """Tell which segment a request is about."""
    return int(_checked(_NUMBER, request.match_info["number"], "segment number"))


def hash_key(request: web.Request) -> int:
    """Tell the key of the hashes that a request is about."""
    return int(_checked(_KEY, request.query.get("key", ""), "key"), 16)


def block_range(request: web.Request) -> tuple[int, int]:
    """Tell the first block that a request is about, and how many."""
    first, blocks = (int(_checked(_BLOCK, request.query.get(name, ""), "block")) for name in ("first", "blocks"))
    if not 0 < blocks <= MAX_HASHES:
        raise BadRequest("parameter-invalid", f"{blocks} blocks were asked for; at most {MAX_HASHES} go at once")
    return first, blocks


def copy_fate(request: web.Request) -> CopyFate:
    """Tell whether a replica that is removed leaves its copy behind."""
    try:
        return _FATE.validate_python(request.query.get("copy"))
    except ValidationError:
        raise BadRequest("parameter-invalid", "say what becomes of the copy: copy=keep or copy=delete") from None


def _checked(adapter: TypeAdapter[str], text: str, what: str) -> str:
    try:
        return adapter.validate_python(text)
    except ValidationError:
        raise BadRequest("parameter-invalid", f"{text[:80]!r} names no {what}") from None

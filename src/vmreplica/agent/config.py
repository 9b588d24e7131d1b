"""The agent's configuration: one TOML file, validated, every complaint naming file, key and remedy."""

import socket
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import HostName
from vmreplica.model.rates import NO_LIMIT, Limit, parse_limit
from vmreplica.model.shape import Shape
from vmreplica.model.units import GiB, MiB, parse_duration, parse_size
from vmreplica.peer.wire import DEFAULT_PORT, split_address

DEFAULT_CONFIG = Path("/etc/vmreplica/agent.toml")


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _duration(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


def _given(value: Any) -> Any:
    """Take an empty text for nothing: TOML has no word for that."""
    return None if value == "" else value


def _duration_or_off(value: Any) -> Any:
    return 0 if value == "off" else _duration(value)


def _limit(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    return parse_limit(texts) if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else value


def _host_name() -> str:
    return socket.gethostname().split(".")[0] or "host"


Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Duration = Annotated[int, BeforeValidator(_duration), Field(ge=0)]
_MaybeText = Annotated[str | None, BeforeValidator(_given)]
_MaybePath = Annotated[Path | None, BeforeValidator(_given)]
_Limit = Annotated[int, BeforeValidator(_duration)]
OptionalDuration = Annotated[int, BeforeValidator(_duration_or_off), Field(ge=0)]
Rates = Annotated[Limit, BeforeValidator(_limit)]
AbsolutePath = Annotated[Path, Field(description="an absolute path")]


class _Section(Shape):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class AgentSection(_Section):
    """``[agent]``: who this host is and where its things are."""

    name: HostName = Field(default_factory=_host_name, description="what other hosts call this one")
    state_dir: AbsolutePath = Field(
        Path("/var/lib/vmreplica"), description="identity, peers, journal, spool, checkpoint definitions"
    )
    store: AbsolutePath = Field(
        Path("/var/lib/vmreplica/store"),
        description="recovery points of VMs that are replicated to this host",
    )
    socket: AbsolutePath = Field(
        Path("/run/vmreplica/agent.sock"), description="the command line talks to the agent here"
    )
    listen: str = Field(f"0.0.0.0:{DEFAULT_PORT}", description="address and port for other hosts")
    advertise: tuple[str, ...] = Field(
        (), description="addresses under which other hosts reach this one; empty: name and port of listen"
    )
    libvirt_uri: str = Field("qemu:///system", description="the libvirt daemon of this host")
    runtime_dir: AbsolutePath = Field(
        Path("/var/lib/libvirt/vmreplica"),
        description="NBD sockets and scratch files of running backup jobs; QEMU must be able to write here",
    )

    @field_validator("state_dir", "store", "socket", "runtime_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        _require_address(value)
        return value

    @field_validator("advertise")
    @classmethod
    def _advertise(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            _require_address(address)
        return value

    def addresses(self) -> tuple[str, ...]:
        """Tell under which addresses other hosts reach this one."""
        if self.advertise:
            return self.advertise
        host, port = split_address(self.listen)
        wildcard = host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        return (f"{socket.getfqdn() if wildcard else host}:{port}",)


class ReplicaSection(_Section):
    """``[replica]``: what primaries may ask of this host."""

    seed_dirs: tuple[AbsolutePath, ...] = Field(
        (Path("/var/lib/vmreplica/seeds"),),
        description="directories below which a primary may name an existing copy to begin with (`--seed existing:`)",
    )
    seed_devices: tuple[str, ...] = Field(
        (),
        description="patterns of block devices that may be named likewise, each part of the path by itself: "
        "`/dev/backup/*`",
    )

    base_devices: tuple[str, ...] = Field(
        (),
        description="patterns of block devices that may hold the bases of replicas (`--base-device`), each part of the "
        "path by itself: `/dev/vg/*`; their content is lost",
    )
    scrub: OptionalDuration = Field(
        7 * 86400,
        description="within this time every recovery point held here is read and checked: `7d`; `off`: only by "
        "`vmreplica scrub`",
    )
    scrub_limit: Size = Field(32 * MiB, description="bytes per second that this may read: `32M`; 0: no limit")

    merge_limit: Size = Field(
        0, description="bytes per second that merging recovery points may write to the store; 0: no limit"
    )

    @field_validator("seed_dirs")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not all(path.is_absolute() and ".." not in path.parts for path in value):
            raise ValueError("each must be an absolute path")
        return value

    @field_validator("seed_devices", "base_devices")
    @classmethod
    def _devices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(pattern.startswith("/dev/") and ".." not in pattern for pattern in value):
            raise ValueError("each must begin with /dev/")
        return value


class LimitsSection(_Section):
    """``[limits]``: what replication may take from the host."""

    concurrent_cycles: int = Field(2, ge=1, le=64, description="cycles running at once on this host")
    concurrent_resyncs: int = Field(
        1,
        ge=1,
        le=64,
        description="of these, initial replications and resynchronisations; one is always left for deltas",
    )
    bandwidth: Rates = Field(
        NO_LIMIT,
        description="bytes per second for all VMs together, as vmreplica limit takes them: a text or a list of texts",
    )
    pause_hold: Duration = Field(
        12 * 3600, description="seconds for which a paused VM's backup job is kept, so that nothing is sent again"
    )
    freeze: Annotated[Duration, Field(ge=1, le=60)] = Field(
        10, description="seconds for which a guest is frozen at most for an application-consistent point"
    )
    spool_cap: Size = Field(4 * GiB, description="bytes of the local spool; capture waits when it is full")
    scratch_cap: Size = Field(8 * GiB, description="bytes of a job's scratch files; the job is given up above it")
    min_free: Size = Field(256 * MiB, description="bytes always left free on each file system we write to")
    workers: int = Field(3, ge=1, le=32, description="reading and compressing threads per cycle")
    connections: int = Field(2, ge=1, le=16, description="segments of one cycle sent at once")
    level: int = Field(1, ge=-7, le=19, description="zstd level of recovery points")


class HealthSection(_Section):
    """``[health]``: who is told when the health of a VM changes; `docs/howto/monitoring.md`."""

    hook: _MaybePath = Field(
        None, description="a program that is run for each change, with the message as JSON on its standard input"
    )
    hook_limit: _Limit = Field(30, ge=1, le=600, description="seconds that the program may take before it is killed")
    webhook: _MaybeText = Field(
        None, description="an http or https address to which each change is posted as JSON; only its host is logged"
    )
    webhook_limit: _Limit = Field(10, ge=1, le=120, description="seconds that one attempt to post may take")
    webhook_secret_file: _MaybePath = Field(
        None, description="a file with a secret; each post is signed with it, in the header `X-VMReplica-Signature`"
    )
    webhook_ca_file: _MaybePath = Field(
        None, description="certificates (PEM) that the webhook's may be signed by, besides those the host trusts"
    )

    @field_validator("hook", "webhook_secret_file", "webhook_ca_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path")
        return value

    @field_validator("webhook")
    @classmethod
    def _webhook(cls, value: str | None) -> str | None:
        if value is not None and not _is_web_address(value):
            raise ValueError("must be an address such as https://alerts.example.com/vmreplica")
        return value


class LogSection(_Section):
    """``[log]``: structured logs on standard error."""

    format: Literal["json", "console"] = Field("json", description="json for machines, console for people")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least level shown")


class Config(_Section):
    """The whole file; every key has a default, so an empty file is a valid one."""

    agent: AgentSection = Field(default_factory=AgentSection)
    limits: LimitsSection = Field(default_factory=LimitsSection)
    replica: ReplicaSection = Field(default_factory=ReplicaSection)
    health: HealthSection = Field(default_factory=HealthSection)
    log: LogSection = Field(default_factory=LogSection)


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in {"http", "https"} and text.isascii() and text.isprintable() and " " not in text


def _require_address(address: str) -> None:
    """Refuse what is not ``host:port`` or ``[v6]:port``; unlike between peers, the port is not left out here."""
    _, port = split_address(address)
    if not address.endswith(f":{port}"):
        raise ValueError(f"{address!r} is not host:port, for example 192.0.2.10:{DEFAULT_PORT}")


def load_config(path: Path) -> Config:
    """Read and validate the configuration file.

    Raises:
        BadRequest: the file is missing, is not TOML, or has a wrong key or value; all wrong keys are named.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(
            "config-unreadable",
            f"cannot read the configuration {path}: {error.strerror}",
            hint="name an existing file with --config; an empty one is valid and means all defaults",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(
            "config-not-toml", f"{path} is not TOML: {error}", hint="correct the line named above"
        ) from error
    return _validate(path, raw)


def _validate(path: Path, raw: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        complaints = "; ".join(_complaint(detail["loc"], detail["msg"], detail["type"]) for detail in error.errors())
        raise BadRequest(
            "config-invalid",
            f"{path}: {complaints}",
            hint="docs/reference/configuration.md lists every key with its meaning and default",
        ) from error


def _complaint(location: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"unknown key {key} (misspelt, or of a newer version)"
    return f"{key}: {message.removeprefix('Value error, ')}"

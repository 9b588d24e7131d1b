"""The base of everything that is written down or sent: frozen, validated, nothing unknown accepted."""

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """A record that crosses a border (file, wire, ``--json``); unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_timedelta="float")

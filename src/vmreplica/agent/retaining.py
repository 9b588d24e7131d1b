"""The rules of retention that a person asks for, as far as the primary can judge them."""

from vmreplica.model.errors import BadRequest
from vmreplica.model.keep import DEFAULT_KEEP, Keep, require_few
from vmreplica.model.policy import Policy


def wanted_keep(asked: Keep | None, old: Policy | None, interval: int) -> Keep:
    """Tell which rules are in force from now on.

    Args:
        asked: by a person; None: nothing was said, so they stay as they are.
        old: the policy so far.
        interval: seconds between cycles from now on.

    Raises:
        BadRequest: ``keep-invalid``: they would keep too many points at this interval.
    """
    keep = asked or (old.keep if old is not None else DEFAULT_KEEP)
    try:
        require_few(keep, interval)
    except ValueError as error:
        raise BadRequest("keep-invalid", str(error), hint="for example --keep within=1h,hourly=24,daily=7") from error
    return keep

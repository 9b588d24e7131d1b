"""Whether libvirt asks the agent before a protected VM starts."""

from typing import Final

from vmreplica.agent.config import Config
from vmreplica.agent.hooks import HOOKS_DIR, hook_for
from vmreplica.hypervisor.hook_text import NAME, HookFate, hook_fate
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.findings import Finding, fine, found

_SAID: Final[dict[HookFate, tuple[str, str]]] = {
    "missing": ("hook-missing", "it is not there"),
    "not-executable": ("hook-not-executable", "libvirt cannot run it"),
    "differs": ("hook-outdated", "it is of another version, or of another configuration"),
}


def hook_findings(config: Config) -> list[Finding]:
    """Look at the hook."""
    path = HOOKS_DIR / NAME
    try:
        fate = hook_fate(hook_for(config))
    except VmReplicaError as error:
        return [found("hook-missing", str(path), error.message)]
    return [judge_hook(fate, str(path))]


def judge_hook(fate: HookFate, path: str) -> Finding:
    """Judge what became of the hook."""
    if fate == "installed":
        return fine("vms", path, "libvirt asks before a protected VM starts")
    code, text = _SAID[fate]
    return found(code, path, text, path=path)

# ruff: noqa: INP001 - a script belongs to no package
"""Write docs/reference from the code; ``--check`` only tells whether it is current."""

import ast
import datetime as dt
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vmreplica.agent.config import Config
from vmreplica.agent.totals import Totals
from vmreplica.api.metrics import families
from vmreplica.cli.main import make_app
from vmreplica.model import errors
from vmreplica.model.findings import CATALOGUE, GROUPS
from vmreplica.model.health_catalogue import CATALOGUE as health_catalogue  # noqa: N811 - there are two
from vmreplica.model.rates import NO_LIMIT, Limit, format_limit
from vmreplica.model.report import StatusReport
from vmreplica.model.units import MiB, format_size

_FIELD: Final = re.compile(r"\{(\w+)\}")
ROOT: Final = Path(__file__).resolve().parent.parent
REFERENCE: Final = ROOT / "docs" / "reference"
SOURCES: Final = ROOT / "src" / "vmreplica"
_NOTE: Final = "Made from the code by `scripts/reference.py`; do not edit.\n"
_COMMANDS_INTRO: Final = (
    "Every command that talks to the agent takes `--json` (one JSON document on standard output; errors as "
    '`{"error": {"code": ..., "kind": ..., "status": ..., "message": ..., "hint": ...}}`) and `--socket PATH` (or '
    "`VMREPLICA_SOCKET`). Exit codes: [errors](errors.md); 11 when `vmreplica doctor` found a "
    "[problem](findings.md); 130 when Ctrl-C ended the watching of a task, which itself goes on.\n"
)
_CONFIGURATION_INTRO: Final = (
    "One TOML file, by default `/etc/vmreplica/agent.toml`. Every key has a default: an empty file is valid. An "
    "unknown key or a wrong value is refused at start, naming the file and the key. Sizes are numbers of bytes or "
    "texts such as `512M` and `20GiB`. See `packaging/agent.toml.example`.\n"
)
_ERRORS_INTRO: Final = (
    "Each error has a stable code, a message and a hint. `transient` errors pass by themselves or with another "
    "try, `operator` ones need a person, `permanent` ones a different request. `...` stands for a name, path or "
    "number.\n"
)
_FINDINGS_INTRO: Final = (
    "What `vmreplica doctor` can find. A `problem` keeps replication or a failover from working, and makes the exit "
    "code 11; a `warning` will do so when something else happens, too; an `info` is good to know. What is in order has "
    "the severity `ok` and the code of its group, such as `peers-ok`. Names in capitals stand for what was found.\n"
)
_HEALTH_INTRO: Final = (
    "Why the health of a VM is not `normal`: shown by `vmreplica status`, written into the journal with each change "
    "(`vmreplica events --kind health`), and told to the hook and the webhook, as "
    "[monitoring](../howto/monitoring.md) describes. The worst level of all reasons is the level of the VM. `VM` "
    "stands for its name. When the last cycle failed, the reason has the code of its [error](errors.md), and is a "
    "`warning`.\n"
)
_METRICS_INTRO: Final = (
    "What `GET /v1/metrics` on the agent's socket answers, in the text format of Prometheus; "
    "[monitoring](../howto/monitoring.md) tells how to scrape it. `vm` is the UUID, `name` the VM's name, `peer` the "
    "other host's. Counters begin at 0 with each start of the agent; what is not known has no sample.\n"
)
_FAMILIES: Final = {family.__name__: family for family in errors.VmReplicaError.__subclasses__()}
#: Errors that tell more than their family; the wire and the exit code know the family only.
_MEMBERS: Final = {member.__name__: name for name, family in _FAMILIES.items() for member in family.__subclasses__()}


def main() -> int:
    """Write or check all pages; tell the exit code."""
    check = "--check" in sys.argv[1:]
    pages = {
        "commands.md": commands_page(),
        "configuration.md": configuration_page(),
        "errors.md": errors_page(SOURCES),
        "findings.md": findings_page(),
        "health.md": health_page(),
        "metrics.md": metrics_page(),
    }
    stale = [name for name, text in pages.items() if not _is(REFERENCE / name, text)]
    for name in stale:
        if not check:
            REFERENCE.mkdir(parents=True, exist_ok=True)
            (REFERENCE / name).write_text(pages[name], encoding="utf-8")
        verb = "is not up to date: run scripts/reference.py" if check else "written"
        sys.stdout.write(f"docs/reference/{name} {verb}\n")
    return 1 if check and stale else 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


# Commands


def commands_page() -> str:
    """Render every command with its arguments, options and examples."""
    root = typer.main.get_command(make_app())
    context = typer.Context(root, info_name="vmreplica")
    parts = [
        "# Commands\n",
        _NOTE,
        _COMMANDS_INTRO,
    ]
    parts += [_command(command, context) for context, command in _leaves(root, context)]
    return "\n".join(parts)


def _leaves(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _leaves(command, below)
        else:
            yield below, command


def _command(command: Any, context: Any) -> str:
    summary, examples = _help_parts(command.help or "")
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    rows = [_parameter(parameter, context) for parameter in command.params if not getattr(parameter, "hidden", False)]
    parts = [f"## {context.command_path}\n", f"{summary}\n", f"```\n{usage}\n```\n"]
    if rows:
        parts.append(_table(("argument or option", "meaning"), rows))
    if examples:
        parts.append("Examples:\n\n```sh\n" + "\n".join(examples) + "\n```\n")
    return "\n".join(parts)


def _help_parts(text: str) -> tuple[str, list[str]]:
    summary, _, rest = text.replace("\b", "").partition("Examples:")
    return " ".join(summary.split()), [line.strip() for line in rest.splitlines() if line.strip()]


def _parameter(parameter: Any, context: Any) -> tuple[str, str]:
    name, text = parameter.get_help_record(context) or (parameter.name, "")
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name
    return f"`{name}`", text


# Configuration


def configuration_page() -> str:
    """Render every section and key of the agent's configuration."""
    parts = [
        "# Configuration of the agent\n",
        _NOTE,
        _CONFIGURATION_INTRO,
    ]
    for name, section in Config.model_fields.items():
        shape = section.annotation
        if not (isinstance(shape, type) and issubclass(shape, BaseModel)):
            raise TypeError(f"{name} of the configuration is not a section")
        title = (shape.__doc__ or "").split(":", 1)[-1].strip().split("\n")[0]
        rows = [(f"`{key}`", *_key(item)) for key, item in shape.model_fields.items()]
        parts += [f"## [{name}]\n", f"{title[:1].upper()}{title[1:]}\n", _table(("key", "default", "meaning"), rows)]
    return "\n".join(parts)


def _key(item: FieldInfo) -> tuple[str, str]:
    limits = [
        f"{text} {getattr(constraint, name)}"
        for constraint in item.metadata
        for name, text in (("ge", "at least"), ("le", "at most"))
        if getattr(constraint, name, None) is not None
    ]
    meaning = "; ".join([item.description or "", *limits])
    return _default(item), meaning


def _default(item: FieldInfo) -> str:
    if item.default_factory is not None:
        return "the host's own"
    if item.default is PydanticUndefined:
        return "none, required"
    value = item.default
    if value is None or value == NO_LIMIT:
        return '`"none"`' if value else "none"
    if isinstance(value, Limit):
        return f'`"{", ".join(format_limit(value))}"`'
    if isinstance(value, int) and not isinstance(value, bool) and value >= MiB:
        return f"`{format_size(value).replace('.0', '').replace(' ', '')}`"
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return f"`[{', '.join(repr(part) for part in value)}]`"
    return f"`{value}`" if isinstance(value, int) else f'`"{value}"`'


# Findings


def findings_page() -> str:
    """Render what doctor can find, by group."""
    parts = ["# Findings of doctor\n", _NOTE, _FINDINGS_INTRO]
    for group in GROUPS:
        rows = [
            (f"`{code}`", entry.severity, entry.meaning, _remedy(entry.remedy))
            for code, entry in CATALOGUE.items()
            if entry.group == group
        ]
        if rows:
            parts += [f"## {group}\n", _table(("code", "severity", "meaning", "what to do"), rows)]
    return "\n".join(parts)


def health_page() -> str:
    """Render every reason that health can give."""
    rows = [(f"`{code}`", entry.levels, entry.meaning, entry.remedy) for code, entry in health_catalogue.items()]
    return "\n".join(("# Health\n", _NOTE, _HEALTH_INTRO, _table(("code", "level", "meaning", "what to do"), rows)))


# Metrics


def metrics_page() -> str:
    """Render every metric with its labels."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    empty = StatusReport(host="host", host_id="0" * 32, version="0", now=now, relationships=())
    rows = [
        (
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ())),
            family.documentation,
        )
        for family in families(empty, Totals())
    ]
    return "\n".join(("# Metrics\n", _NOTE, _METRICS_INTRO, _table(("metric", "type", "labels", "meaning"), rows)))


def _remedy(template: str) -> str:
    if template in {"{hint}", "{remedy}"}:
        return "what the finding says"
    return _FIELD.sub(lambda name: name[1].upper(), template)


# Errors


@dataclass
class Found:
    """What the raise sites of a code have in common and what not."""

    families: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def errors_page(sources: Path) -> str:
    """Render the families with their exit codes, and every code with what it says."""
    found = collect(sources)
    families = [
        (
            f"`{name}`",
            (family.__doc__ or "").strip().split("\n")[0],
            str(family.exit_code),
            str(family.status),
            family.kind,
        )
        for name, family in _FAMILIES.items()
    ]
    codes = [
        (
            f"`{code}`",
            ", ".join(sorted(what.families)),
            ", ".join(sorted({str(_FAMILIES[name].exit_code) for name in what.families}, key=int)),
            "<br>".join(what.messages),
            "<br>".join(what.hints),
        )
        for code, what in sorted(found.items())
    ]
    return "\n".join(
        (
            "# Errors\n",
            _NOTE,
            _ERRORS_INTRO,
            "## Families\n",
            _table(("family", "meaning", "exit code", "HTTP status", "kind"), families),
            "## Codes\n",
            _table(("code", "family", "exit code", "message", "what to do"), codes),
        )
    )


def collect(sources: Path) -> dict[str, Found]:
    """Find every construction of an error under a directory, by reading the code without running it."""
    found: dict[str, Found] = {}
    for path in sorted(sources.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Call) and _called(node) in _FAMILIES and node.args:
                _note(found, node)
    return found


def _note(found: dict[str, Found], call: ast.Call) -> None:
    hints = (keyword.value for keyword in call.keywords if keyword.arg == "hint")
    for code in _texts(call.args[0]):
        what = found.setdefault(code, Found())
        what.families.add(_called(call))
        _add(what.messages, (text for argument in call.args[1:2] for text in _texts(argument)))
        _add(what.hints, (text for hint in hints for text in _texts(hint)))


def _add(known: list[str], new: Iterable[str]) -> None:
    known.extend(text for text in dict.fromkeys(new) if text and text != "..." and text not in known)


def _called(call: ast.Call) -> str:
    name = call.func.id if isinstance(call.func, ast.Name) else str(getattr(call.func, "attr", ""))
    return _MEMBERS.get(name, name)


def _texts(node: ast.expr) -> list[str]:
    """Give the texts that an expression can be, as far as they are written there."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
        return ["".join(str(part) for part in parts)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in _texts(value)]
    return []


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>")


if __name__ == "__main__":
    sys.exit(main())

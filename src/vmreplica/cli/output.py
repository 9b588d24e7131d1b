"""What every command does with its result, its errors and its questions."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

    from vmreplica.model.errors import Problem, VmReplicaError

_Parameters = ParamSpec("_Parameters")
_Report = TypeVar("_Report", bound="BaseModel")
_WIDE: Final = 200
#: The exit code after Ctrl-C, as shells give it.
INTERRUPTED: Final = 130


def reporting(command: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Let a command end with its error's exit code, shown as text or, with ``--json``, as one JSON document."""

    @wraps(command)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("\nInterrupted; what was asked of the agent may still be done: vmreplica status", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            from vmreplica.model.errors import VmReplicaError  # noqa: PLC0415 - needed on failure only

            if not isinstance(error, VmReplicaError):
                raise
            show_error(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(error.exit_code) from error

    return run


def show_error(error: "VmReplicaError", *, as_json: bool) -> None:
    """Show an error to a person on standard error, or to a script on standard output."""
    problem = error.problem()
    if as_json:
        show_document({"error": problem.model_dump(mode="json")})
        return
    typer.echo(error_text(problem), err=True)


def error_text(problem: "Problem") -> str:
    """Spell an error for people: what, code, and what to do next."""
    hint = f"\n  {printable(problem.hint)}" if problem.hint else ""
    return f"error: {printable(problem.message)} ({problem.code}){hint}"


def show_document(document: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(f"{json.dumps(document, indent=2)}\n")


def show_answer(answer: bytes) -> None:
    """Print the agent's answer as it is, indented.

    Raises:
        Internal: it is not JSON.
    """
    try:
        document = json.loads(answer)
    except ValueError as error:
        raise _unknown_answer("JSON") from error
    show_document(document)


def show_done(text: str, *, as_json: bool, **facts: str) -> None:
    """Say that something without a report of its own is done."""
    if as_json:
        show_document({"result": "ok", **facts})
    else:
        typer.echo(printable(text))


def read_report(shape: type[_Report], answer: bytes) -> _Report:
    """Read the agent's answer.

    Raises:
        Internal: it is not what this version expects.
    """
    try:
        return shape.model_validate_json(answer)
    except ValueError as error:
        raise _unknown_answer(f"a {shape.__name__} of this version") from error


def make_request(shape: type[_Report], **fields: Any) -> _Report:
    """Build a request's body from what a person typed.

    Raises:
        BadRequest: something in it is not allowed; every wrong field is named.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    try:
        return shape.model_validate(fields)
    except ValidationError as error:
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - needed on failure only

        wrong = (f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise BadRequest("request-invalid", "; ".join(wrong), hint="--help shows what is allowed") from error


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Ask a person whether to go on; scripts say ``--yes`` beforehand.

    Raises:
        BadRequest: there is nobody to ask.
        Refused: the answer is no.
    """
    if yes:
        return
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - needed on failure only

        raise BadRequest(
            "confirmation-needed",
            f"this needs a confirmation, and there is nobody to ask: {printable(question)}",
            hint="add --yes when you are sure",
        )
    if not typer.confirm(printable(question), err=True):
        from vmreplica.model.errors import Refused  # noqa: PLC0415 - needed on failure only

        raise Refused("not-confirmed", "nothing was done", hint="answer y, or add --yes when you are sure")


def console(*, stderr: bool = False) -> "Console":
    """Make a console that colours on a terminal only, and wraps nothing when read by a program."""
    from rich.console import Console  # noqa: PLC0415 - slow to import

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def show(renderable: "RenderableType") -> None:
    """Print something rich can render on standard output."""
    console().print(renderable)


def printable(text: str) -> str:
    """Show control characters by their codes: names and messages come from other hosts."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _unknown_answer(expected: str) -> "VmReplicaError":
    from vmreplica.model.errors import Internal  # noqa: PLC0415 - needed on failure only

    return Internal(
        "agent-answer-unknown",
        f"the agent's answer is not {expected}",
        hint="restart the agent after an upgrade: systemctl restart vmreplica",
    )

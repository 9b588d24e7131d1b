"""The documentation names only what exists: pages, anchors, commands, options, errors, keys and make targets."""

import re
from pathlib import Path

import pytest
import typer
from pages import ROOT, anchors, blocks, commands, examples, links, pages, prose

from vmreplica.agent.config import Config
from vmreplica.cli.main import make_app
from vmreplica.model.health import Facts, judge
from vmreplica.model.health_catalogue import CATALOGUE
from vmreplica.model.states import Event, State

pytestmark = pytest.mark.main_job

PAGES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in pages()]
#: Those that a person reads when something is wrong.
HELP = [page for page in PAGES if any(part in str(page.id) for part in ("runbooks", "guide", "doctor"))]
_CODE = re.compile(r"`([a-z]+(?:-[a-z]+)+)`")
#: Words of other programs that look like codes of ours.
_FOREIGN = {"in-use", "host-passthrough"}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        waiting += [(page.parent / link.split("#")[0]).resolve() for link in links(page.read_text()) if link[0] != "#"]
    assert not set((ROOT / "docs").rglob("*.md")) - seen


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_in_a_shell_block_exists(page: Path) -> None:
    root = typer.main.get_command(make_app())
    for line in commands(page.read_text()):
        command, words = root, line.split()[1:]
        while hasattr(command, "get_command"):
            found = command.get_command(None, words[0])
            if found is None and (default := getattr(command, "default", None)):
                found, words = command.get_command(None, default), [default, *words]
            assert found is not None, f"{line}: no command {words[0]}"
            command, words = found, words[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = [word.split("=")[0] for word in words[: words.index("--") if "--" in words else None]]
        assert {option for option in options if option.startswith("-")} <= known, line


@pytest.mark.parametrize("page", HELP)
def test_every_code_that_a_page_for_bad_days_names_is_one_of_ours(page: Path) -> None:
    late = Facts(
        state=State.REPLICATING, interval=5, point_age=99, last_duration=99, complaints=("x",), runs_stale=True
    )
    waits = Facts(state=State.REPLICATING, interval=5, point_age=1, start_waits="x")
    judged = (judge(late), judge(waits), *(judge(Facts(state=state, interval=5, point_age=1)) for state in State))
    known = {reason.code for one in judged for reason in one.reasons} | {*State, *Event, *CATALOGUE} | _FOREIGN
    for reference in ("errors.md", "findings.md"):
        known |= set(_CODE.findall((ROOT / "docs/reference" / reference).read_text()))
    assert set(_CODE.findall(prose(page.read_text()))) - known == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_key_exists(page: Path) -> None:
    sections = {name: set(type(section).model_fields) for name, section in dict(Config()).items()}
    for section, key in re.findall(r"`(agent|limits|log)\.(\w+)`", page.read_text()):
        assert key in sections[section], f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = set(re.findall(r"`make ([a-z-]+)`", text))
    for block in blocks(text):
        named |= set(re.findall(r"^make ([a-z-]+)", block.body, re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_example_for_the_lab_can_be_read(page: Path) -> None:
    text = page.read_text()
    assert len(examples(text)) >= sum(block.info == "sh lab" for block in blocks(text))


def test_examples_carry_what_is_expected_saved_and_which_failure_is_right() -> None:
    text = "```sh lab\nalpha$ virsh list\n# expect: web\n# save ID: (\\d+) +web\n\n# fails: 3\nbeta$ false\n```\n"
    first, second = examples(text)
    assert (first.host, first.command, first.exit_code) == ("alpha", "virsh list", 0)
    assert (first.expected, first.saves) == (("web",), (("ID", r"(\d+) +web"),))
    assert (second.host, second.command, second.exit_code) == ("beta", "false", 3)


@pytest.mark.parametrize("line", ["vmreplica status", "gamma$ vmreplica status", "# expects: x", "# expect: x"])
def test_an_example_that_nobody_would_run_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"neither a command|no command above"):
        examples(f"```sh lab\n{line}\n```\n")


def test_every_test_that_an_invariant_names_exists() -> None:
    page = (ROOT / "docs" / "design" / "invariants.md").read_text()
    rows = re.findall(r"^- `(tests/[\w/]+\.py)`: (.+?)(?=^- |^\n|\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(rows) > 20
    for file, names in rows:
        source = (ROOT / file).read_text()
        for name in re.findall(r"`(test_\w+)`", names):
            assert f"def {name}(" in source, f"{file}: {name}"


def test_each_pitfall_names_a_test_that_exists_or_says_why_there_is_none() -> None:
    page = (ROOT / "docs" / "design" / "pitfalls.md").read_text()
    rows = {row[1]: row[2] for row in re.finditer(r"^\| \*\*(P\d+a?)\*\* .+ \| .+ \| (.+) \|$", page, re.MULTILINE)}
    assert list(rows) == [
        *(f"P{number}" for number in range(1, 23)),
        "P22a",
        *(f"P{number}" for number in range(23, 29)),
        *(f"P{number}" for number in range(34, 38)),
    ]
    for pitfall, shown in rows.items():
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
        assert named or shown.startswith("Not in the lab: "), pitfall
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{pitfall}: {file}::{name}"

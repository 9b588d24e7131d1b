"""What the documentation says, taken apart: pages, links, fenced blocks, examples that run in the lab. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a reader sees, and what the lab needs besides, in a comment that is not shown.
_FOR_THE_LAB = re.compile(r"^(?:```|<!-- )sh lab\n(?P<body>.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PROMPT = re.compile(r"^(alpha|beta|lab)\$ (.+)$")
_NOTE = re.compile(r"^# (expect|fails|save (?P<name>[A-Z]+)): (?P<value>.+)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the words behind its fence, and its lines."""

    info: str
    body: str


@dataclass(frozen=True, slots=True)
class Example:
    """A command of a page, where it runs, and what is promised about it."""

    host: str
    command: str
    expected: tuple[str, ...] = ()
    saves: tuple[tuple[str, str], ...] = ()
    exit_code: int = 0


def pages() -> list[Path]:
    """List all pages that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])


def blocks(text: str) -> list[Block]:
    """Find the fenced blocks of a page."""
    return [Block(found["info"].strip(), found["body"]) for found in _FENCE.finditer(text)]


def prose(text: str) -> str:
    """Give a page without its fenced blocks."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """List where a page links to."""
    return _LINK.findall(prose(text))


def anchors(text: str) -> set[str]:
    """Name the anchors that a page's headings make."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in _HEADING.findall(prose(text))}


def examples(text: str) -> list[Example]:
    """Read all examples of a page that run in the lab.

    Raises:
        ValueError: a line is neither a command nor a note, or a note stands at the wrong place.
    """
    return [one for block in _FOR_THE_LAB.finditer(text) for one in _read(block["body"].splitlines())]


def _read(lines: list[str]) -> Iterator[Example]:
    current: Example | None = None
    exit_code = 0
    for line in filter(str.strip, lines):
        if prompt := _PROMPT.match(line):
            if current is not None:
                yield current
            current, exit_code = Example(prompt[1], prompt[2].strip(), exit_code=exit_code), 0
            continue
        note = _NOTE.match(line)
        if note is None:
            raise ValueError(f"neither a command nor a note: {line!r}")
        if note[1] == "fails":
            exit_code = int(note["value"])
        elif current is None:
            raise ValueError(f"no command above: {line!r}")
        elif note["name"]:
            current = replace(current, saves=(*current.saves, (note["name"], note["value"])))
        else:
            current = replace(current, expected=(*current.expected, note["value"]))
    if current is not None:
        yield current


def commands(text: str) -> list[str]:
    """List the vmreplica commands in a page's shell blocks, without prompts and comments."""
    lines = (line for block in blocks(text) if block.info in {"sh", "sh lab"} for line in block.body.splitlines())
    bare = (re.sub(r"^(\w+\$|sudo) ", "", line).split("#")[0].split("|")[0].strip() for line in lines)
    return [line for line in bare if line.startswith("vmreplica ")]

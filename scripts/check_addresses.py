# ruff: noqa: T201, INP001 - a script speaks on standard output and belongs to no package
"""Refuse addresses that tie the tree to one place: package indexes, and paths of the machine it was written on.

Requirements are pinned by hash, so any index that serves the same files will do; which one is the machine's own
configuration. A path that exists on one machine only makes a test or a document untrue on every other.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Written so that this file does not contain what it looks for.
INDEX_HOST = re.compile(r"\b(?:p[y]pi|p[y]thonhosted|n[p]mjs|deb[.]debian|archive[.]ubuntu)\.(?:org|io|com|net)\b")
INDEX_OPTION = re.compile(r"-{2}(?:extra-|default-)?[i]ndex(?:-url)?[ =]|-{2}[f]ind-links|(?:PIP|UV)_[A-Z_]*[I]NDEX")
PLACE = re.compile(r"(?<![\w.:<>*/-])/(?:[w]ork|[w]orkspace|[b]uilds|[U]sers)/[A-Za-z]|(?<![\w<])/[h]ome/[a-z]+/")
RULES = (
    (INDEX_HOST, "host of a package index"),
    (INDEX_OPTION, "package index option"),
    (PLACE, "path of one machine"),
)


def tracked_files() -> list[Path]:
    """List the files under version control that still exist."""
    # The tree may belong to somebody else than the one who checks it, as in many a build container.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


def complaints(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Name each line of a text file that holds such an address."""
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        return
    for number, line in enumerate(lines, 1):
        reasons = [reason for rule, reason in RULES if rule.search(line)]
        if len(root.parts) > 2 and str(root) in line:  # noqa: PLR2004 - a tree in /src would match half of all paths
            reasons.append("path of this very tree")
        yield from (f"{path.relative_to(root)}:{number}: {reason}: {line.strip()[:80]}" for reason in reasons)


def main() -> int:
    """Print every complaint; tell whether there was one."""
    found = [line for path in tracked_files() for line in complaints(path)]
    print("\n".join(found) if found else "addresses: none that belongs to one machine")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

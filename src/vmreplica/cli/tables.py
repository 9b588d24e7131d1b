"""Tables of all commands."""

from collections.abc import Sequence

from rich.table import Table


def make_table(columns: Sequence[str]) -> Table:
    """Make a table without lines."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # On a narrow terminal everything may be folded but what is copied into the next command.
        table.add_column(column, overflow="fold", no_wrap=column == "point")
    return table

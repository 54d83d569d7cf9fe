"""What the commands show in a terminal, and what they write where there is none."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from daodask.drive import Progress

__all__ = ["open_console", "show_progress"]

#: Columns of text that goes to a file or a pipe: wide enough that no table is cut.
_PLAIN_WIDTH = 160


def open_console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup in it, and nothing coloured on a guess."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, markup=False, highlight=False, width=None if stream.isatty() else _PLAIN_WIDTH)


def show_progress(*, quiet: bool = False) -> AbstractContextManager[Progress | None]:
    """What to pass as ``progress=``: bars where stderr is a terminal, else lines; ``None`` where quiet."""
    from daodask.progress import open_progress

    return open_progress(not quiet)

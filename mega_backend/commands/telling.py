"""What a command tells its user: progress bars, lines above them, and what went wrong."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BAD_INPUT = 2
"""Exit code where what the user gave cannot be used."""


def complain(error: Exception) -> int:
    """One sentence on standard error; returns the exit code for bad input."""
    from tqdm import tqdm

    tqdm.write(f"mega: {error}", file=sys.stderr)  # above the progress bars, where there are any
    return BAD_INPUT


def say(text: str) -> None:
    """A line on standard output, above the progress bars."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)


@contextmanager
def counting_bar(total: int, text: str, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error over a number of things; gives what to call after each."""
    from tqdm import tqdm

    with tqdm(total=total, desc=text, file=sys.stderr, disable=None if shown else True, leave=False) as bar:
        yield lambda: bar.update(1)


@contextmanager
def progress_bar(text: str, leave: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error for one piece of work; gives the `progress` function to hand on.

    leave: whether the bar stays when the work is done.
    """
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
    with tqdm(total=100, desc=text, file=sys.stderr, disable=None, leave=leave, bar_format=form) as bar:

        def progress(fraction: float, what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update(round(100 * fraction) - bar.n)

        yield progress

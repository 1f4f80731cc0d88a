"""Progress bars with rate and time left, silent where standard error is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def track(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yields the items behind a progress bar on standard error."""
    if not sys.stderr.isatty():
        yield from items
        return
    count, rate, left = MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, rate, left)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=description)

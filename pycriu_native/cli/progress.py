"""Display of a call's progress: a bar on a terminal, else lines with ``--verbose``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .output import Output
from .text import remaining, size

if TYPE_CHECKING:
    from .._calls.progress_state import OnProgress
    from .._calls.progress_state import Progress as State


@contextlib.contextmanager
def shown(out: Output) -> Iterator[OnProgress | None]:
    """Yield the ``on_progress`` argument for a verb that is called in this context."""
    if out.bar:
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.stop()
    elif out.verbose:
        yield lambda state: out.progress(line(state))
    else:
        yield None


def line(state: State) -> str:
    """The state as one line of text."""
    return f"{state.phase}: {', '.join(filter(None, _parts(state).values()))}"


def _parts(state: State) -> dict[str, str]:
    return {
        "amount": amount(state),
        "rate": f"{size(state.rate)}/s" if state.rate else "",
        "left": f"{remaining(state.left)} left" if state.left else "",
    }


def amount(state: State) -> str:
    """The amount done, and the total if it is known."""
    if state.total is None:
        return size(state.done)
    return f"{size(state.done)} of {size(max(state.total, state.done))}"


class _Bar:
    """A progress bar, drawn from the second call on, so that a short operation shows none."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._calls = 0

    def __call__(self, state: State) -> None:
        self._calls += 1
        if self._calls < 2 or state.left == 0:
            return
        total = None if state.total is None else max(state.total, state.done, 1)
        fields = _parts(state)
        if self._task is None:
            self._progress = _columns()
            self._progress.start()
            self._task = self._progress.add_task(state.phase, total=total, **fields)
        self._progress.update(
            self._task, description=state.phase, completed=state.done, total=total, **fields
        )

    def stop(self) -> None:
        if self._task is not None:
            self._progress.stop()


def _columns() -> Any:
    """Make rich's bar; importing rich takes longer than a short call."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True, highlight=False, markup=False, emoji=False),
        transient=True,
    )

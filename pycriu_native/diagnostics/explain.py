"""The effect of a call, computed without the call (``call_effects.py``)."""

from __future__ import annotations

from .._checks.arguments import check_types
from .._transport.base import Via
from ..enums import Verb
from ..options.criu_opts import CriuOpts
from ..options.fields import verb_of
from .explanation import ConfigurationFile, Explanation, Sent, Setting

__all__ = ["ConfigurationFile", "Explanation", "Sent", "Setting", "explain"]


def explain(
    opts: CriuOpts, verb: Verb | str, pid: int | None = None, via: Via | None = None
) -> Explanation:
    """Compute the effect of ``verb`` with these options. Raises only for a verb without options.

    ``pid`` and ``via`` as for the verb. For a call that would be refused, the reasons are shown.
    """
    from .call_effects import effects_of  # loaded at the first call

    check_types(opts, via, "explain")
    return effects_of(opts, verb_of(verb), pid, via)

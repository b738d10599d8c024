"""Signatures that show the options which a function passes on, for help() and notebooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def show_options(function: Callable[..., Any], of: Callable[..., Any], **defaults: Any) -> None:
    """Show, in place of a function's ``**options``, those that another one takes.

    Args:
        function: What passes its ``**options`` on, or a class.
        of: Who takes them, by keyword alone.
        **defaults: Where the function has others.
    """
    taken = inspect.signature(of).parameters.values()
    # A class may have a signature that its library made of its fields.
    signature = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    own = list(signature.parameters.values())
    shown = own[inspect.isclass(function) : -1] + [
        one.replace(default=defaults.get(one.name, one.default))
        for one in taken
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]

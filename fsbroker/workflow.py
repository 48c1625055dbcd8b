"""Functions that exported workflow files name where a plain call cannot stand in them.

A node of a Python Workflow Definition calls a function by name with keyword arguments, at
least one. Readers such as the `python-workflow-definition` package import these from here.
"""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any

FUNCTION = "()"
"""The port with the function's name: no parameter can be called so."""


def call(**ports: Any) -> Any:
    """Call the function that is named by the port ``()``.

    Ports that are numbers are positional arguments, the others keyword arguments. For
    functions without arguments, with positional-only ones (``sum``), or with ``*args``.
    """
    name = ports.pop(FUNCTION)
    places = sorted((int(port), value) for port, value in ports.items() if port.isdecimal())
    keywords = {port: value for port, value in ports.items() if not port.isdecimal()}
    return found(name)(*(value for _, value in places), **keywords)


def found(name: str) -> Any:
    """The object of this module and qualified name.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, rest = name.partition(".")
    at = import_module(module)
    while rest:
        head, _, tail = rest.partition(".")
        if not hasattr(at, head) and hasattr(at, "__path__"):
            import_module(f"{at.__name__}.{head}")
        at, rest = attrgetter(head)(at), tail
    return at


def item(value: Any, step: int | str) -> Any:
    """An item of a value; of a list or tuple also by the text of its number."""
    if isinstance(step, str) and step.isdecimal() and isinstance(value, (list, tuple)):
        return value[int(step)]  # executorlib writes the ports of split futures so
    return value[step]

"""What can stand as a value in a workflow file."""

from __future__ import annotations

import sys
from typing import Any

from fsbroker import plain
from fsbroker.errors import WorkflowError

CURE = "Pass numbers, text, lists and dicts with text keys, or make it inside the function"


def json_form(value: Any, where: str) -> Any:
    """The value as JSON has it: tuples and arrays as lists, NumPy's numbers as numbers.

    Raises:
        WorkflowError: it has no form in JSON that a function could take for it.
    """
    kind = type(value)
    if kind in plain.ATOMS:
        return value
    if kind in (list, tuple):
        return [json_form(item, where) for item in value]
    if kind is dict:
        return {_key(key, where): json_form(item, where) for key, item in value.items()}
    if _is_numeric(value):
        return value.tolist()
    raise WorkflowError(f"A {kind.__qualname__} has no form in JSON", where, CURE)


def _key(key: Any, where: str) -> str:
    """JSON has text keys only: 1 and "1" would become one."""
    if type(key) is not str:
        raise WorkflowError(f"A dict with the key {key!r} has no form in JSON", where, CURE)
    return key


def _is_numeric(value: Any) -> bool:
    """An array or scalar of NumPy, of numbers or text that Python has too."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return False
    kind, size = value.dtype.kind, value.dtype.itemsize
    return kind == "U" or (kind in "biuf" and size <= 8)  # no long doubles

"""What has no canonical form: from the place deep inside to a message for the user.

`NotCanonical` travels outwards and collects the way (function, variable, attribute);
`refusing`, at the border, makes a `CannotPickle` of it.
"""

from __future__ import annotations

from fsbroker.errors import CannotPickle

_CURE = 'Name the call yourself with cache_key=..., or switch the cache off with {"cache": "off"}.'


class NotCanonical(Exception):
    """An object has no canonical form; ``way`` leads to it from the outside."""

    def __init__(self, obj: object, reason: object = "") -> None:
        self.obj = obj
        self.reason = str(reason)
        self.way: list[str] = []
        super().__init__(type(obj))


class refusing:  # noqa: N801 - reads as a statement
    """Tell the user what has no canonical form, and what can be done."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NotCanonical):
            reason = f" ({error.reason})" if error.reason else ""
            what = f"An object of type {type_name(error.obj)} has no content address{reason}"
            where = ", ".join([self._what, *error.way])
        elif isinstance(error, RecursionError):
            what, where = "Too deeply nested for a content address", self._what
        else:
            return
        raise CannotPickle(what, where, _CURE) from error


def type_name(obj: object) -> str:
    """Module and name of the type."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"

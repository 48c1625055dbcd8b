"""The arguments of a call: bound to the parameters, then as text or as a canonical stream.

However a call was written, by position, by keyword or with a default left out, it is the
same call.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fsbroker import plain
from fsbroker.keys.canonical import Canon
from fsbroker.keys.refusal import refusing
from fsbroker.keys.stream import filled
from fsbroker.pickling import Foreign
from fsbroker.task import WORKER_ID

_MISSING: Any = object()


class _Bound(NamedTuple):
    values: list[Any]
    absent: tuple[str, ...]
    extra: tuple[Any, ...]
    keywords: dict[str, Any]


class Shape:
    """The parameters of a callable: what arguments are bound to.

    Args:
        names: of the parameters, keyword-only ones last.
        counts: how many of them are positional-only, and positional.
        defaults: by name.
        takes: whether there are ``*args`` and ``**kwargs``.
    """

    __slots__ = ("_defaults", "_names", "_only", "_positional", "_takes", "arity")

    def __init__(
        self,
        names: Sequence[str],
        counts: tuple[int, int],
        defaults: Mapping[str, Any],
        takes: tuple[bool, bool],
    ) -> None:
        self._names = tuple(names)
        self._only, self._positional = counts
        # The worker fills this one in place of its default: left out, it is another call.
        self._defaults = {name: defaults[name] for name in defaults if name != WORKER_ID}
        self._takes = takes
        self.arity = self._positional if self._positional == len(self._names) else -1
        """With so many positional arguments nothing is left to bind; -1: look closer."""

    def bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, preset: bool
    ) -> _Bound | None:
        """The value of each parameter, or None for a call that Python would refuse.

        A parameter without a value is no error: an ``init_function`` may provide it. Where
        there is one (``preset``), it may also do so in place of a default.
        """
        keywords = dict(kwargs)
        defaults = {} if preset else self._defaults
        count = min(len(args), self._positional)
        values, absent = list(args[:count]), []
        for place in range(count, len(self._names)):
            name = self._names[place]
            value = keywords.pop(name, _MISSING) if place >= self._only else _MISSING
            value = defaults.get(name, _MISSING) if value is _MISSING else value
            if value is _MISSING:
                absent.append(name)
            values.append(None if value is _MISSING else value)
        bound = _Bound(values, tuple(absent), args[count:], keywords)
        return bound if self._accepts(bound, count) else None

    def _accepts(self, bound: _Bound, count: int) -> bool:
        twice = bound.keywords.keys() & set(self._names[self._only : count])
        wrong = (bound.extra and not self._takes[0]) or (bound.keywords and not self._takes[1])
        return not wrong and not twice


def shape_of(fn: Any) -> Shape | None:
    """The parameters of a callable, or None where Python does not know them."""
    if type(fn) is types.FunctionType:
        return _shape_of_code(fn)
    import inspect

    try:
        # Not through __wrapped__: what a wrapper does with its arguments is its own affair.
        parameters = inspect.signature(fn, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = [p.kind for p in parameters]
    only = kinds.count(inspect.Parameter.POSITIONAL_ONLY)
    positional = only + kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return Shape(
        [p.name for p in parameters if p.kind not in variable],
        (only, positional),
        {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty},
        (variable[0] in kinds, variable[1] in kinds),
    )


def _shape_of_code(fn: types.FunctionType) -> Shape:
    code = fn.__code__
    count = code.co_argcount
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    given = fn.__defaults__ or ()
    defaults = dict(zip(names[count - len(given) : count], given, strict=True))
    defaults.update(fn.__kwdefaults__ or {})
    takes = (bool(code.co_flags & 0x04), bool(code.co_flags & 0x08))
    return Shape(names, (code.co_posonlyargcount, count), defaults, takes)


# -- in canonical form -------------------------------------------------------------------


def canonical(
    shape: Shape | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    foreign: Foreign | None,
    *,
    preset: bool = False,
) -> bytes:
    """The arguments in the order of the parameters: as text if they are simple.

    No digest starts with the "[" of the text: it comes after a zero byte.

    Raises:
        CannotPickle: one has no canonical form.
    """
    bound = shape.bind(args, kwargs, preset=preset) if shape is not None else None
    if bound is not None and not (bound.absent or bound.extra or bound.keywords):
        text = _simple_text(filled(bound.values, foreign))
        if text is not None:
            return text.encode("ascii")
    with refusing("the arguments"):
        parts = (*bound,) if bound else ("call", args, dict(kwargs))
        return b"\0" + Canon(foreign=foreign).digest(parts)


def _simple_text(values: Sequence[Any]) -> str | None:
    """The text of atoms, of lists and tuples of atoms, and of dicts of them with str keys.

    For atoms alone it is the text of the payload, so that the fast path needs no other. It
    depends on the values only, by whatever way they came: else one call had two keys.
    """
    parts = [_simple_part(value) for value in values]
    return None if None in parts else f"[{','.join(parts)}]"  # type: ignore[arg-type]


def _simple_part(value: Any) -> str | None:
    kind = type(value)
    if kind is dict:
        if not {str}.issuperset(map(type, value)):
            return None
        names = sorted(value)
        texts = plain.flat_text(names), plain.flat_text([value[name] for name in names])
        return None if None in texts else f"{{{texts[0]}{texts[1]}}}"
    if kind is list or kind is tuple:
        text = plain.flat_text(value)
        return text if text is None or kind is list else f"({text[1:-1]})"
    text = plain.flat_text((value,))
    return text if text is None else text[1:-1]

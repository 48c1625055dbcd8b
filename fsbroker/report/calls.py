"""Calls that refer to each other: what is drawn, and what is written to workflow files.

    Call -> Argument -> Source: Ref       the value of another call, or a part of it
                                Leaf      any other value, in the form that is wanted of it
                                Items     a list or dict with a Ref somewhere inside
                                Opaque    an object that hides Refs

`Reader` makes one from a function and its arguments. They are taken as they are at that
moment: the caller may change a list afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias

from fsbroker import pickling, plain
from fsbroker.keys.function import name_of
from fsbroker.parts import content_of
from fsbroker.task import Dependency

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


class Ref(NamedTuple):
    """The value of a call, by its number, or the part that the items of ``selector`` lead to."""

    call: int
    selector: tuple[int | str, ...] = ()


class Leaf(NamedTuple):
    """A value in the form that is wanted of it; equal ``same`` means equal values."""

    form: Any
    same: object


class Items(NamedTuple):
    """A list or dict; the items of a list are named by their places."""

    kind: type[list[Any] | dict[str, Any]]
    items: tuple[tuple[str, Source], ...]


class Opaque(NamedTuple):
    """Another object with futures inside."""

    refs: tuple[Ref, ...]


Source: TypeAlias = Ref | Leaf | Items | Opaque
Form = Callable[[Any, str], Any]
"""What is to be kept of a value; the second argument says where it stands. May raise."""


class Argument(NamedTuple):
    """One argument of a call.

    Attributes:
        label: the parameter's name, or what comes closest.
        port: its name if it can be given by name, else its place.
    """

    label: str
    port: str | int
    source: Source


class Called(NamedTuple):
    """A function.

    Attributes:
        name: module and qualified name.
        signature: its parameters; None if they are not known.
        direct: a function of Python that stands at the top of its module.
    """

    name: str
    signature: inspect.Signature | None
    direct: bool


class Call(NamedTuple):
    """One call.

    Attributes:
        function: what is called.
        arguments: in the order of the parameters.
    """

    function: Called
    arguments: tuple[Argument, ...]

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def direct(self) -> bool:
        return self.function.direct

    @property
    def label(self) -> str:
        return self.name.rpartition(".")[2]

    def refs(self) -> Iterator[tuple[str, Ref]]:
        """All that it refers to, with the labels of the arguments."""
        for argument in self.arguments:
            yield from ((argument.label, ref) for ref in refs_in(argument.source))


def refs_in(source: Source) -> Iterator[Ref]:
    if isinstance(source, Ref):
        yield source
    elif isinstance(source, Opaque):
        yield from source.refs
    elif isinstance(source, Items):
        for _, item in source.items:
            yield from refs_in(item)


class Reader:
    """Takes arguments apart.

    Args:
        numbers: of the calls that may be referred to, by the keys of their futures.
        form: what is kept of values.
    """

    def __init__(self, numbers: Mapping[bytes, int], form: Form) -> None:
        self._numbers = numbers
        self._form = form

    def call(self, called: Called, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """A call with these arguments.

        Raises:
            TypeError: the function does not take them.
            WorkflowError: (of ``form``) a value cannot stand where it is to be written.
        """
        arguments = [
            Argument(label, port, self._source(value, f"argument {label!r} of {called.name}"))
            for label, port, value in _bound(called.signature, args, kwargs)
        ]
        return Call(called, tuple(arguments))

    def _source(self, value: Any, where: str) -> Source:
        ref = self._ref(value)
        if ref is not None:
            return ref
        if isinstance(value, Future):
            return self._source(_content(value), where)
        hidden = self._hidden(value)
        if hidden and (type(value) in (list, tuple) or _is_named(value)):
            pairs = value.items() if type(value) is dict else enumerate(value)
            items = tuple((str(name), self._source(item, where)) for name, item in pairs)
            return Items(dict if type(value) is dict else list, items)
        return Opaque(hidden) if hidden else Leaf(self._form(value, where), _same(value))

    def _ref(self, value: object) -> Ref | None:
        """What a future, or what stands for one, refers to."""
        found = pickling.dependency_of(value)
        return None if found is None else self._known(found)

    def _known(self, found: Dependency) -> Ref | None:
        number = self._numbers.get(found.key)
        return None if number is None else Ref(number, found.selector)

    def _hidden(self, value: Any) -> tuple[Ref, ...]:
        """What an object refers to, anywhere inside; what has no pickle hides nothing."""
        if type(value) in plain.ATOMS:
            return ()
        try:
            found = _dependencies(value)
        except Exception:
            return ()
        return tuple(ref for one in found if (ref := self._known(one)) is not None)


def _dependencies(value: Any) -> Sequence[Dependency]:
    try:
        return pickling.encode(value).dependencies
    except pickling.ForeignFutures as foreign:
        values = {id(one): _content(one) for one in foreign.futures}
        return pickling.encode(value, values).dependencies


def _content(future: Future[Any]) -> Any:
    """A batch holds futures; the value of any other, of another executor, is waited for."""
    future.exception()
    return content_of(future)


def _is_named(value: object) -> bool:
    return type(value) is dict and {str}.issuperset(map(type, value))


def _same(value: Any) -> object:
    """Equal for equal plain values of the same types; arrays and other objects are their own."""
    payload = plain.encode(value)
    return object() if payload is None or payload.arrays else payload.data


def _bound(
    signature: inspect.Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, str | int, Any]]:
    """Label, port and value of each argument that was given.

    A port is a place only where a name would not do, or others behind it need their places.
    """
    if signature is None:
        yield from ((str(place), place, value) for place, value in enumerate(args))
        yield from ((name, name, value) for name, value in kwargs.items())
        return
    signature.bind_partial(*args, **kwargs)  # raises what the call would
    named = list(signature.parameters.values())
    labels = [one.name for one in named if one.kind not in VARIABLE][: len(args)]
    rest = next((one.name for one in named if one.kind in VARIABLE[:1]), "")
    labels += [f"{rest}[{n}]" for n in range(len(args) - len(labels))]
    by_place = len(args) > len(labels) or any(one.kind in BY_PLACE for one in named[: len(args)])
    for place, (label, value) in enumerate(zip(labels, args, strict=True)):
        yield label, place if by_place else label, value
    order = {one.name: place for place, one in enumerate(named)}
    for name in sorted(kwargs, key=lambda name: order.get(name, len(order))):
        yield name, name, kwargs[name]


def called_of(fn: Callable[..., Any]) -> Called:
    """A live function, with its parameters as `keys` sees them: not through wrappers."""
    try:
        signature = inspect.signature(fn, follow_wrapped=False)
    except (TypeError, ValueError):
        signature = None
    direct = inspect.isfunction(fn) and "." not in fn.__qualname__
    return Called(name_of(fn), signature, direct)

"""The canonical stream of anything: own functions, classes and modules as a graph.

The stream refers to own code by number, in the order of discovery, and describes each
node once, after the object itself. What a node depends on that may change later is told
to a `Witness`.
"""

from __future__ import annotations

import builtins
import types
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from fsbroker.keys import arrays, objects, sources
from fsbroker.keys.code import Chain, normalised, uses_of
from fsbroker.keys.home import home_of, resolves
from fsbroker.keys.refusal import NotCanonical, type_name
from fsbroker.keys.stream import Stream
from fsbroker.pickling import Foreign

MISSING: Any = type("Missing", (), {"__repr__": lambda _: "<missing>"})()
"""In place of the value of a name that has none."""


class Witness:
    """Is told what a stream depends on. This one forgets it."""

    def saw_function(self, fn: types.FunctionType) -> None:
        """Its code, defaults and attributes count."""

    def saw_name(self, names: Mapping[str, Any], name: str, value: Any) -> None:
        """The name stands for this value, or `MISSING`."""

    def saw_cell(self, cell: types.CellType, value: Any) -> None:
        """The cell holds this value, or `MISSING`."""

    def saw_class(self, cls: type) -> None:
        """Its members count."""

    def saw_value(self, value: Any) -> None:
        """A function or class holds on to the value, which may change in place."""

    def saw_source(self, name: str, digest: bytes) -> None:
        """The source of the own module has this digest."""


_NOBODY = Witness()


class Canon(Stream):
    """Writes the canonical stream of one object and of all own code that it reaches.

    Args:
        witness: is told what the stream depends on.
        foreign: values of the futures of other executors.
        absent: installed modules to treat as missing, where a function imports them.

    Attributes:
        installed_imports: names of the installed modules that functions import as they run.
    """

    def __init__(
        self,
        witness: Witness = _NOBODY,
        foreign: Foreign | None = None,
        absent: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(foreign)
        self._witness = witness
        self._absent = absent
        self.installed_imports: set[str] = set()
        self._numbers: dict[int, int] = {}
        self._waiting: list[Any] = []

    def digest(self, obj: object) -> bytes:
        """Write the object: once in the life of a stream."""
        self.value(obj)
        for node in self._waiting:  # grows while we walk it
            self._node(node)
        return self._hasher.digest()

    def alone(self, obj: Any) -> bytes:
        """The digest of an object by a stream of its own."""
        return Canon(self._witness, self._foreign, self._absent).digest(obj)

    # objects

    def compound(self, obj: Any) -> None:
        """Write the parts of an object that is no atom."""
        if type(obj) is types.CodeType:
            self._code(obj)
        elif not (objects.write(self, obj) or arrays.write(self, obj)):
            self._object(obj)

    def _object(self, obj: Any) -> None:
        """Take it apart as pickle would."""
        reduced = objects.reduce(obj)
        self.keep(reduced)
        if isinstance(reduced, str):
            self._global(obj, reduced)
            return
        make, args, state, items, pairs = reduced
        self.put(b"object")
        for part in (make, tuple(args), state, items):
            self.value(part)
        if isinstance(obj, OrderedDict):
            self.value(pairs)
        else:
            self.mapping(dict(pairs or ()))

    def _global(self, obj: Any, name: str) -> None:
        """An object that its module has under this name."""
        module = objects.module_of(obj, name)
        home = home_of(module)
        if not home.is_own:
            self.put_text(b"ref", home.label, module, name)
        elif home.file:
            self.put_text(b"own", name.rpartition(".")[2], type_name(obj))
            self._source(module)
        else:
            raise NotCanonical(obj)

    # code: by number here, described at the end of the stream

    def code_like(self, obj: Any) -> None:
        """Write a function, class or module."""
        if isinstance(obj, types.ModuleType):
            self._module(obj)
        elif not _has_own_code(obj):
            home = home_of(str(obj.__module__))
            self.put_text(b"ref", home.label, str(obj.__module__), obj.__qualname__)
            if home.file:  # a class of an own compiled extension
                self._source(obj.__module__)
        else:
            if id(obj) not in self._numbers:
                self._numbers[id(obj)] = len(self._numbers)
                self._waiting.append(obj)
            self.put(b"#", b"%d" % self._numbers[id(obj)])

    def _node(self, obj: Any) -> None:
        try:
            if isinstance(obj, type):
                self._class(obj)
            else:
                self._function(obj)
        except NotCanonical as error:
            kind = "class" if isinstance(obj, type) else "function"
            error.way.insert(0, f"{kind} {obj.__qualname__}")
            raise

    def _held(self, owner: Any, what: str, value: Any) -> None:
        """A value that a function or class holds on to, and that may change in place."""
        try:
            self.value(value)
            self._witness.saw_value(value)
        except NotCanonical as error:
            module = str(owner.__module__)
            if home_of(module).file and resolves(module, owner.__qualname__, owner):
                self.put_text(b"made by", type_name(value))  # by the module, as it is imported
                self._source(module)
                return
            error.way.insert(0, what)
            raise

    # functions

    def _function(self, fn: types.FunctionType) -> None:
        self._witness.saw_function(fn)
        self.put(b"function")
        self._code(fn.__code__)
        uses = uses_of(fn.__code__)
        for name, value in zip(_default_names(fn), fn.__defaults__ or (), strict=True):
            self._held(fn, f"default of {name!r}", value)
        self._held(fn, "keyword defaults", fn.__kwdefaults__ or None)
        self._held(fn, "attributes", vars(fn) or None)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            self._cell(fn, name, cell, uses.frees.get(name, ()))
        home = home_of(str(fn.__globals__.get("__name__")))
        if home.is_own:
            for name in sorted(uses.names):
                self._variable(fn, name, uses.names[name])
        else:  # what a decorator from a library made: its globals are the library's
            self.put_text(b"library", home.label)
        for name in sorted(uses.imports(fn.__globals__)):
            self._import(name)

    def _code(self, code: types.CodeType) -> None:
        parts = normalised(code)
        self.put_text(b"code", code.co_name)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self.put_text(b"counts", str(counts), str(code.co_flags & 0x3FF))
        for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self.put_text(b"names", *names)
        self.put(b"bytecode", parts.bytecode)
        self.put(b"handlers", getattr(code, "co_exceptiontable", b""))
        for constant in parts.constants:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.value(constant)

    def _cell(
        self, fn: types.FunctionType, name: str, cell: types.CellType, chains: Iterable[Chain]
    ) -> None:
        value = content_of(cell)
        self._witness.saw_cell(cell, value)
        self._used(fn, f"closure variable {name!r}", value, chains)

    def _variable(self, fn: types.FunctionType, name: str, chains: Iterable[Chain]) -> None:
        if name == "__builtins__":  # a module or a dict, depending on who ran the code
            return
        value = fn.__globals__.get(name, MISSING)
        self._witness.saw_name(fn.__globals__, name, value)
        self.put_text(b"global", name)
        if value is MISSING:
            self.put(b"builtin" if hasattr(builtins, name) else b"unbound")
        else:
            self._used(fn, f"global {name!r}", value, chains)

    def _used(self, fn: types.FunctionType, what: str, value: Any, chains: Iterable[Chain]) -> None:
        if value is MISSING:
            self.put(b"unbound")
        elif isinstance(value, types.ModuleType):
            self._module(value, sorted(chains), fn)
        else:
            self._held(fn, what, value)

    # classes

    def _class(self, cls: type) -> None:
        members = vars(cls)
        self._witness.saw_class(cls)
        self.put_text(b"class", cls.__name__)
        self.value(type(cls))
        self.value(cls.__bases__)
        if issubclass(cls, Enum):
            for name, member in cls.__members__.items():
                self.put_text(b"member", name)
                self._held(cls, name, member._value_)
        for name in sorted(members):
            if not _is_bookkeeping(cls, name, members[name]):
                self.put_text(b"attribute", name)
                self._held(cls, f"attribute {name!r}", members[name])

    # modules

    def _module(
        self,
        module: types.ModuleType,
        chains: Sequence[Chain] = ((),),
        user: types.FunctionType | None = None,
    ) -> None:
        """A module: installed ones by version, own ones by those attributes that are used."""
        name = module.__name__
        home = home_of(name)
        if not home.is_own:
            self.put_text(b"module", home.label, name)
            return
        self.put(b"own module")
        for attributes in chains:
            if attributes and user is not None:
                self._attribute(module, attributes, user)
            else:  # used as a whole
                self._source(name)

    def _attribute(
        self, module: types.ModuleType, attributes: Chain, user: types.FunctionType
    ) -> None:
        name = attributes[0]
        value = vars(module).get(name, MISSING)
        if value is MISSING and "__getattr__" in vars(module):
            # Loaded on first use: the worker and a new session have not used it yet.
            value = getattr(module, name, MISSING)
        self._witness.saw_name(vars(module), name, value)
        self.put_text(b"attribute", name)
        self._used(user, f"{module.__name__}.{name}", value, [attributes[1:]])

    def _import(self, name: str) -> None:
        """What a function imports when it runs: not imported here, for it may need a GPU."""
        home = home_of(name)
        if not home.is_own:
            self.installed_imports.add(name)
        if home.is_own and home.file:
            self.put_text(b"import", name)
            self._source(name)
        elif home.is_own or name in self._absent:
            self.put_text(b"import", name, "missing")
            self._witness.saw_source(name, source_digest(name))  # it may come
        else:
            self.put_text(b"import", name, home.label)

    def _source(self, name: str) -> None:
        digest = source_digest(name)
        self._witness.saw_source(name, digest)
        self.put(b"source", digest)


def source_digest(name: str) -> bytes:
    """The digest of an own module's source, and of the own modules that it imports."""
    return sources.digest_of(name, _code_digest)


def _code_digest(code: types.CodeType) -> bytes:
    return Canon().digest(code)


def content_of(cell: types.CellType) -> Any:
    """The value of a closure's variable, or `MISSING`."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _default_names(fn: types.FunctionType) -> Sequence[str]:
    count = fn.__code__.co_argcount
    return fn.__code__.co_varnames[count - len(fn.__defaults__ or ()) : count]


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or like one


def _has_own_code(obj: type | types.FunctionType) -> bool:
    """Whether this is to be described by its code. So is what libraries make at run time."""
    if isinstance(obj, type) and not obj.__flags__ & _HEAP_TYPE:
        return False
    module = str(obj.__module__)
    return home_of(module).is_own or not resolves(module, obj.__qualname__, obj)


_BOOKKEEPING = frozenset((
    "__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__slotnames__",
    "__firstlineno__", "__static_attributes__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
    "__type_params__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl",
    "__protocol_attrs__", "__non_callable_proto_members__", "__new_member__",
))  # fmt: skip
"""Members of a class that Python and libraries keep: they follow from others, or change by
themselves."""

_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)


def _is_bookkeeping(cls: type, name: str, value: Any) -> bool:
    if name in _BOOKKEEPING or isinstance(value, _SLOTS):
        return True
    if not issubclass(cls, Enum):
        return False
    user_made = isinstance(value, (types.FunctionType, property, staticmethod, classmethod))
    return name in cls.__members__ or not user_made

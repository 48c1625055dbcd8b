"""Bytecode: what of it counts, and what it takes from outside.

normalised(code)   instructions and constants, without lines and docstrings
uses_of(code)      global and free variables, attributes taken from them, imports
"""

from __future__ import annotations

import struct
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from opcode import EXTENDED_ARG, hasconst, opmap
from typing import Any, NamedTuple

from fsbroker.keys.home import home_of

Chain = tuple[str, ...]
"""The attributes that are taken from a variable: ``("linalg", "norm")`` in np.linalg.norm."""

Instruction = tuple[int, int]
"""Operation and argument."""

_NEW_LAYOUT = sys.version_info >= (3, 11)
_GLOBAL_SHIFT = 1 if _NEW_LAYOUT else 0
_ATTR_SHIFT = 1 if sys.version_info >= (3, 12) else 0
_CONST = frozenset(hasconst)


def _opcodes(*names: str) -> frozenset[int]:
    return frozenset(opmap[name] for name in names if name in opmap)


_LOAD_GLOBAL = _opcodes("LOAD_GLOBAL")
_LOAD_NAME = _opcodes("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_LOAD_FREE = _opcodes("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_LOAD_ATTR = _opcodes("LOAD_ATTR")
_LOAD_METHOD = _opcodes("LOAD_METHOD")
_IMPORT_NAME = _opcodes("IMPORT_NAME")
_STORE_NAME = _opcodes("STORE_NAME")
_SMALL_INT = _opcodes("LOAD_SMALL_INT")
_SKIPPED = _opcodes("CACHE") | {EXTENDED_ARG}
_END = 0, 0

_LINE_DEPENDENT = {"__firstlineno__", "__static_attributes__", "__doc__"}
"""What class bodies store that an edit elsewhere, or the order of a set, changes."""


def _instructions(code: types.CodeType) -> Iterator[Instruction]:
    raw = code.co_code
    high = 0
    for place in range(0, len(raw), 2):
        op, arg = raw[place], raw[place + 1] | high
        high = arg << 8 if op == EXTENDED_ARG else 0
        if op not in _SKIPPED:
            yield op, arg


# -- what counts -------------------------------------------------------------------------


class Normalised(NamedTuple):
    """A code object, as far as it depends on what was written and not on where."""

    bytecode: bytes
    constants: list[Any]


def normalised(code: types.CodeType) -> Normalised:
    """The instructions, with constants numbered as they are used: a docstring shifts them."""
    found = list(_instructions(code))
    for place, (op, arg) in enumerate(found):
        if op in _STORE_NAME and code.co_names[arg] in _LINE_DEPENDENT and place:
            found[place - 1] = (0, 0)
    places: dict[int, int] = {}
    for place, (op, arg) in enumerate(found):
        if op in _CONST:
            found[place] = op, places.setdefault(arg, len(places))
    bytecode = b"".join(struct.pack("<BI", *instruction) for instruction in found)
    return Normalised(bytecode, [code.co_consts[arg] for arg in places])


# -- what it takes from outside ----------------------------------------------------------


class Uses:
    """What a code object, with those inside it, takes from outside.

    Attributes:
        names: global variables, and which attributes are taken from each at once.
        frees: the same for variables of enclosing functions.
    """

    def __init__(self, code: types.CodeType) -> None:
        self.names: dict[str, set[Chain]] = {}
        self.frees: dict[str, set[Chain]] = {}
        self._imports: list[tuple[int, str, tuple[str, ...]]] = []
        self._scan(code)

    def imports(self, scope: Mapping[str, Any]) -> set[str]:
        """The full names of the modules that are imported when the code runs."""
        return set(chain.from_iterable(_full_names(scope, *entry) for entry in self._imports))

    def _scan(self, code: types.CodeType) -> None:
        found = [*_instructions(code), _END]
        for place, (op, arg) in enumerate(found):
            if op in _LOAD_GLOBAL:
                name = code.co_names[arg >> _GLOBAL_SHIFT]
                self.names.setdefault(name, set()).add(_chain_after(code, found, place))
            elif op in _LOAD_NAME:
                name = code.co_names[arg]
                self.names.setdefault(name, set()).add(_chain_after(code, found, place))
            elif op in _LOAD_FREE:
                name = _free_name(code, arg)
                self.frees.setdefault(name, set()).add(_chain_after(code, found, place))
            elif op in _IMPORT_NAME:
                level, names = (_constant(code, *found[place - back]) for back in (2, 1))
                self._imports.append((level or 0, code.co_names[arg], tuple(names or ())))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._scan(constant)


@lru_cache(maxsize=1024)
def uses_of(code: types.CodeType) -> Uses:
    """The `Uses` of a code object."""
    return Uses(code)


def _chain_after(code: types.CodeType, found: Sequence[Instruction], place: int) -> Chain:
    """The attributes that are taken from what the instruction at this place loads."""
    attributes: list[str] = []
    while True:  # to `_END` at the latest
        place += 1
        op, arg = found[place]
        if op in _LOAD_ATTR:
            attributes.append(code.co_names[arg >> _ATTR_SHIFT])
        elif op in _LOAD_METHOD:
            attributes.append(code.co_names[arg])
        else:
            return tuple(attributes)


def _free_name(code: types.CodeType, arg: int) -> str:
    """The free variable of a LOAD_DEREF, or "" for a variable of the function itself."""
    inner = set(code.co_varnames) if _NEW_LAYOUT else set()
    before = len(inner) + len([name for name in code.co_cellvars if name not in inner])
    return code.co_freevars[arg - before] if arg >= before else ""


def _constant(code: types.CodeType, op: int, arg: int) -> Any:
    if op in _SMALL_INT:
        return arg
    return code.co_consts[arg] if op in _CONST else None


def _full_names(
    scope: Mapping[str, Any], level: int, name: str, names: Sequence[str]
) -> Iterator[str]:
    if level:
        package = str(scope.get("__package__") or scope.get("__name__"))
        base = package.rsplit(".", level - 1)[0]
        name = f"{base}.{name}" if name else base
    yield name
    for item in names:  # `from package import module`
        if item != "*" and home_of(name).is_own and home_of(f"{name}.{item}").file:
            yield f"{name}.{item}"

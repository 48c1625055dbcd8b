"""YAML whose mappings know on which line each key stands, so that errors can say it."""

from __future__ import annotations

from typing import Any

import yaml

from fsbroker.errors import ConfigError


class LinedMapping(dict[Any, Any]):
    """A mapping of a YAML text.

    Attributes:
        lines: the line of each key, from 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}


class _Loader(yaml.SafeLoader):
    """Refuses aliases, a few of which make a value that is endless in print and to check."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken here", mark)
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> LinedMapping:
    found = LinedMapping()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "no key", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            twice = f"{key!r} stands here for a second time"
            raise yaml.constructor.ConstructorError(None, None, twice, key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
        found.lines[key] = key_node.start_mark.line + 1
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str | bytes, origin: str) -> Any:
    """What a YAML text says: `LinedMapping`, list, text, number, truth value or None.

    Raises:
        ConfigError: it is not YAML; `origin` and the line are named.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - derives from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date that does not exist, bytes that are not UTF-8.
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"This is not YAML ({problem})", f"{origin}{line}") from error

"""YAML files as plain values that remember their lines; ambiguous or hostile files are refused.

YAML 1.1's safe subset without anchors, aliases, merge keys, duplicate keys and deep nesting; at most 1 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

MAX_BYTES = 1_000_000
_MAX_DEPTH = 16
_MERGE_TAG = "tag:yaml.org,2002:merge"

Place: TypeAlias = "tuple[str | int, ...]"


class DocumentError(ValueError):
    """The file is not YAML that can be accepted; `line` counts from 1, 0 where the whole file is meant."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """The values of one file, and the line, from 1, of each key and list item by its place."""

    values: Any
    lines: dict[Place, int]


def read_document(path: Path) -> Document:
    """Read one YAML file. Raises DocumentError, and OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DocumentError(0, f"is larger than {MAX_BYTES // 1_000_000} MB; this is no configuration file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DocumentError(line, "is not UTF-8 text; save the file as UTF-8") from None
    try:
        return _compose(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise DocumentError(line, f"holds the character {chr(error.character)!r}; remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = (mark.line + 1 if mark else 0), error.problem or "is not YAML"
        if "'\\t'" in problem or (mark and _indented_by_tab(text, mark.line)):
            problem = "is indented with a tab; use spaces"
        raise DocumentError(line, f"is not valid YAML: {problem}" if "tab" not in problem else problem) from None


def _indented_by_tab(text: str, line: int) -> bool:
    indented = text.splitlines()[line : line + 1]
    return bool(indented) and "\t" in indented[0][: len(indented[0]) - len(indented[0].lstrip())]


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, and of bounded depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise DocumentError(event.start_mark.line + 1, "uses an anchor or alias (& or *); write the value out")
        if self.depth == _MAX_DEPTH:
            raise DocumentError(event.start_mark.line + 1, f"is nested deeper than {_MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str) -> Document:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise DocumentError(0, "is empty")
        lines: dict[Place, int] = {}
        return Document(_value(loader, root, (), lines), lines)
    finally:
        loader.dispose()


def _value(loader: _Loader, node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    """The plain value of a node; writes the line of everything below `place` into `lines`."""
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*place, index), lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE_TAG:
            raise DocumentError(line, "has a key that is a group or a merge (<<); write the keys out")
        key = _scalar(loader, key_node)
        if not isinstance(key, str):
            raise DocumentError(line, f"has the key {key!r}, which is not a name; put it in quotes if it is meant")
        here = (*place, key)
        if key in mapping:
            raise DocumentError(line, f"{key}: is given twice, first on line {lines[here]}; remove one")
        lines[here] = line
        mapping[key] = _value(loader, value_node, here, lines)
    return mapping


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, AttributeError):  # What PyYAML makes of 2026-99-99, !!bool x and !!timestamp x.
        raise DocumentError(node.start_mark.line + 1, f"holds {node.value!r}; put it in quotes") from None

"""Strict YAML: refuses values that one YAML parser reads as a number and another as a word.

PyYAML reads YAML 1.1, in which `010` is 8, `1:30` is 90, `no` is false and `2026-11-30` a date; in YAML 1.2 most of
them are words. The author meant one of the two, and the error asks which.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST = 64  #: levels of sections and lists, including those that aliases add
LARGEST = 100_000  #: values in total; a value that an alias repeats counts each time
LONGEST = 300  #: characters of a number

Path = tuple[str | int, ...]  #: keys and positions that lead to a value

_PREFIX = "tag:yaml.org,2002:"
_UNCLEAR = "!unclear"

#: Plain scalars with a clear meaning, tried in this order and before the disputed ones; all others are words.
_PLAIN = {
    "null": "|null",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
    "merge": "<<",
}
_EXP = "([eE][-+]?[0-9]+)?"

#: Plain scalars that YAML parsers read differently: the pattern of each, and the message for the user.
_DISPUTED = {
    "yes|Yes|YES|on|On|ON": "means true to some readers of YAML: write true",
    "no|No|NO|off|Off|OFF": "means false to some readers of YAML: write false",
    "~|Null|NULL": "means nothing to some readers of YAML: write null",
    "[-+]?0([xX][0-9a-fA-F_]+|[bB][01_]+|o[0-7_]+)": "is a number of another base: write its decimal digits",
    r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?": "counts in sixties to some readers of YAML: write seconds",
    r"[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?([Tt\s].*)?": "is a date to some readers of YAML",
    rf"[-+]?0[0-9_]+(\.[0-9_]*)?{_EXP}": "counts in eights to some readers of YAML: write it without leading zeros",
    rf"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9_]+){_EXP}": "is a number to some readers of YAML: write it without _",
    r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)": "is no number that a job can use: write a finite one",
}


class Written(NamedTuple):
    """Parsed document, with the original text of its plain values."""

    value: Any
    texts: Mapping[Path, str]


class Unclear(yaml.MarkedYAMLError):
    """Error for a value that is valid YAML but may mean two things."""

    problem: str


def read(text: str) -> Written:
    """Parses `text` as one document; `yaml.YAMLError` if it is invalid, too deep, too large, or `Unclear`."""
    loader = _Loader(text)
    try:
        return Written(loader.get_single_data(), loader.texts)
    finally:
        loader.dispose()


class _Extent(NamedTuple):
    values: int
    depth: int


class _Loader(yaml.SafeLoader):
    """YAML loader that checks each node when it is composed: path and line are known, and no value exists yet."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.texts: dict[Path, str] = {}
        self._path: list[str | int] = []
        self._extents: dict[Node, _Extent] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        if isinstance(parent, MappingNode) and index is None:
            return self._key(parent, event)
        if parent is not None:
            self._path.append(index.value if isinstance(index, Node) else index)
        if len(self._path) > DEEPEST:
            raise _problem(f"the file is more than {DEEPEST} levels deep", event)
        node: Any = super().compose_node(parent, index)
        if isinstance(node, ScalarNode):
            self._check_scalar(node)
        if is_alias and node not in self._extents:
            raise _problem(f"the alias *{event.anchor} stands within what it repeats", event)
        if not is_alias:
            self._measure(node)
        if parent is not None:
            self._path.pop()
        return node  # type: ignore[no-any-return]

    def _key(self, parent: Node, event: Any) -> Node:
        """Composes a key, which is always a word; copies the node, because its anchor may name a value elsewhere."""
        if isinstance(event, yaml.CollectionStartEvent):
            raise _problem("a key is one word, and this is a list or a section", event)
        node: Any = super().compose_node(parent, None)  # type: ignore[arg-type]
        if not isinstance(node, ScalarNode):
            raise _problem("a key is one word, and this repeats a list or a section", event)
        self._measure(node)
        is_word = node.tag == _UNCLEAR or node.tag.removeprefix(_PREFIX) in _PLAIN.keys() - {"merge"}
        tag = f"{_PREFIX}str" if is_word else node.tag
        return ScalarNode(tag, node.value, node.start_mark, node.end_mark, node.style)

    def _check_scalar(self, node: ScalarNode) -> None:
        kind, text = node.tag.removeprefix(_PREFIX), node.value
        if kind == _UNCLEAR:
            why = next((why for look, why in _DISPUTED.items() if re.fullmatch(look, text)), None)
            if why is None:  # the file uses the internal tag literally, so no pattern matches
                raise _problem(f"the tag {kind} means nothing", node)
            where = "".join(f"{part}." for part in self._path)[:-1]
            either = "," if ": write" in why else ":"
            sentence = f"{text} {why}{either} {'or ' if either == ',' else ''}quote it"
            raise Unclear(problem=f"{where}: {sentence}" if where else sentence, problem_mark=node.start_mark)
        if kind in _PLAIN and not re.fullmatch(_PLAIN[kind], text):  # an explicit tag contradicts the text
            raise _problem(f"{text!r} is no {kind}", node)
        if kind in ("int", "float") and (len(text) > LONGEST or not math.isfinite(float(text))):
            raise _problem(f"the number {text[:20]}… is too large", node)
        if node.style is None:
            self.texts[tuple(self._path)] = text

    def _measure(self, node: Node) -> None:
        """Bounds the expanded document: with nested aliases, a few lines can fill the memory."""
        inner: list[Node] = []
        if isinstance(node, SequenceNode):
            inner = node.value
        elif isinstance(node, MappingNode):
            inner = [value for _, value in node.value]
            self._refuse_twice(node)
        known = [self._extents[part] for part in inner]
        found = _Extent(1 + sum(one.values for one in known), 1 + max((one.depth for one in known), default=0))
        self._extents[node] = found
        # The number of nodes so far bounds a long list even before its end is read.
        values = max(found.values, len(self._extents))
        if values > LARGEST or found.depth > DEEPEST:
            limit = f"{LARGEST} values" if values > LARGEST else f"{DEEPEST} levels"
            raise _problem(f"with its aliases the file has more than {limit}", node)

    def _refuse_twice(self, node: MappingNode) -> None:
        """Refuses a key that is given twice, because the second value would silently win."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise _problem(f"the key {key.value!r} is given twice", key)
            seen.add(key.value)


def _problem(sentence: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(problem=sentence, problem_mark=at.start_mark)


_Loader.yaml_implicit_resolvers = {}
for _kind, _look in _PLAIN.items():
    _Loader.add_implicit_resolver(f"{_PREFIX}{_kind}", re.compile(f"^({_look})$"), None)
_Loader.add_implicit_resolver(_UNCLEAR, re.compile(f"^({'|'.join(_DISPUTED)})$"), None)
# An explicit tag may only produce types that plain values have: a job holds no bytes, sets or dates.
_KNOWN = {f"{_PREFIX}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")} | {None}
_Loader.yaml_constructors = {tag: make for tag, make in _Loader.yaml_constructors.items() if tag in _KNOWN}

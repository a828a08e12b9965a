"""Syntax trees as flat lists, in one pass of a cursor: what CodeBLEU's tree part and its data flow both read."""

from __future__ import annotations

import io
import re
import tokenize
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

Compat = Literal["official", "pypi", "fixed"]
"""Comments are cut by C's rule in every language ("official"), or by the language's own ("pypi", "fixed"). Names are
cut out of lines of characters by columns in bytes ("official", "pypi"), or right in any code ("fixed")."""

_COMMENT_OR_STRING = re.compile(r'//.*?$|/\*.*?\*/|\'(?:\\.|[^\\\'])*\'|"(?:\\.|[^\\"])*"', re.DOTALL | re.MULTILINE)
_STRINGS = frozenset({"string_literal", "string", "character_literal"})

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Tree:
    """The nodes of one snippet, parents before children; node 0 is the root.

    kinds, fields (in the parent, None without): (nodes,); children: (nodes,) lists of nodes; tokens of node k are
    first[k] to last[k] - 1. A token is a leaf, or a string literal whole, and no comment; texts: (tokens,);
    place: (tokens,) its number, that of the last token with the same extent; variable: (tokens,) whether its text is
    another than its kind, as it is for names and literals but not for marks and keywords.
    subtrees: ids of the root and of every node with children.
    """

    kinds: list[str]
    fields: list[str | None]
    children: list[list[int]]
    first: list[int]
    last: list[int]
    texts: list[str]
    place: list[int]
    variable: list[bool]
    subtrees: list[int]
    errors: bool


class Forest:
    """Parses snippets of one language. Equal sub-trees have equal ids over all of its trees."""

    def __init__(self, parser: Any, compat: Compat = "official") -> None:
        self._parser, self._compat = parser, compat
        self._ids: dict[Key, int] = {}

    def tree(self, code: str) -> Tree:
        """Parse and flatten a snippet."""
        encoded = code.encode("utf-8", "replace")
        parsed = self._parser.parse(encoded)
        cursor = parsed.walk()
        kinds: list[str] = []
        fields: list[str | None] = []
        children: list[list[int]] = []
        first: list[int] = []
        last: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        leaf_kinds: list[str] = []
        subtrees: list[int] = []
        ids, broken = self._ids, parsed.root_node.has_error
        down, across, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
        path: list[int] = []  # from the root to the parent of the node at hand
        items: list[list[Any]] = []  # what each of them shows of its children so far
        inside_string = 0  # the depth of a string literal that is one token; 0 outside
        while True:
            node = cursor.node
            kind = node.type
            index = len(kinds)
            kinds.append(kind)
            fields.append(cursor.field_name)
            children.append([])
            first.append(len(starts))
            last.append(0)
            if path:
                children[path[-1]].append(index)
            has_children = down()
            if not inside_string and (not has_children or kind in _STRINGS) and kind != "comment":
                starts.append(node.start_byte)
                ends.append(node.end_byte)
                leaf_kinds.append(kind)
                if has_children:
                    inside_string = len(path) + 1
            if has_children:
                path.append(index)
                items.append([])
                continue
            known = self._id((str(node),) if broken and node.has_error else (kind,))
            if not path:
                subtrees.append(known)
            elif node.is_named:
                items[-1] += (fields[index], known)
            last[index] = len(starts)
            while not across():
                if not up():
                    break
                index = path.pop()
                shown = items.pop()
                node = cursor.node
                if inside_string == len(path) + 1:
                    inside_string = 0
                last[index] = len(starts)
                # What is broken is told apart by its whole text, which shows parts that no cursor comes to.
                key = (str(node),) if broken and node.has_error else (kinds[index], *shown)
                known = ids.get(key)
                if known is None:
                    known = ids[key] = len(ids)
                subtrees.append(known)
                if path:
                    items[-1] += (fields[index], known) if node.is_named else shown
            else:
                continue
            break
        texts = self._texts(code, encoded, starts, ends)
        latest = {extent: k for k, extent in enumerate(zip(starts, ends, strict=True))}
        place = list(range(len(starts)))
        if len(latest) < len(starts):
            place = [latest[extent] for extent in zip(starts, ends, strict=True)]
            texts = [texts[k] for k in place]
        variable = [kind != text for kind, text in zip(leaf_kinds, texts, strict=True)]
        return Tree(kinds, fields, children, first, last, texts, place, variable, subtrees, broken)

    def _id(self, key: Key) -> int:
        return self._ids.setdefault(key, len(self._ids))

    def _texts(self, code: str, encoded: bytes, starts: list[int], ends: list[int]) -> list[str]:
        if len(encoded) == len(code):
            texts = [code[a:b] for a, b in zip(starts, ends, strict=True)]
        elif self._compat == "fixed":
            texts = [encoded[a:b].decode("utf-8", "replace") for a, b in zip(starts, ends, strict=True)]
        else:
            return self._shifted_texts(code, encoded, starts, ends)
        return [text.replace("\n", "") if "\n" in text else text for text in texts]

    @staticmethod
    def _shifted_texts(code: str, encoded: bytes, starts: list[int], ends: list[int]) -> list[str]:
        """As the official script cuts: by columns in bytes out of lines of characters."""
        lines = code.split("\n")
        begins = [0]
        for line in encoded.split(b"\n"):
            begins.append(begins[-1] + len(line) + 1)
        texts = []
        for start, end in zip(starts, ends, strict=True):
            top, bottom = bisect_right(begins, start) - 1, bisect_right(begins, end) - 1
            left, right = start - begins[top], end - begins[bottom]
            if top == bottom:
                texts.append(lines[top][left:right])
            else:
                texts.append("".join([lines[top][left:], *lines[top + 1 : bottom], lines[bottom][:right]]))
        return texts


def without_comments(code: str, language: str = "c", compat: Compat = "official") -> str:
    """Code without comments and blank lines, the first step of CodeBLEU; see `Compat`.

    Python's docstrings go with its comments; code that its tokenizer refuses stays as it is.
    """
    if compat != "official":
        if language == "ruby":
            return code
        if language == "python":
            return _without_python_comments(code)
    if "/" in code:
        code = _COMMENT_OR_STRING.sub(lambda found: " " if found[0].startswith("/") else found[0], code)
    if "\n" not in code:
        return code if code.strip() else ""
    return "\n".join(line for line in code.split("\n") if line.strip())


def _without_python_comments(code: str) -> str:
    kept: list[str] = []
    before, row, column = tokenize.INDENT, -1, 0
    try:
        for kind, text, (top, left), (bottom, right), _ in tokenize.generate_tokens(io.StringIO(code).readline):
            if top > row:
                column = 0
            kept.append(" " * (left - column))
            if kind == tokenize.STRING:
                # A string that begins a statement says something to people only, unless it is the whole program.
                if before not in (tokenize.INDENT, tokenize.NEWLINE) and left > 0:
                    kept.append(text)
            elif kind != tokenize.COMMENT:
                kept.append(text)
            before, row, column = kind, bottom, right
    except (tokenize.TokenError, SyntaxError):
        return code
    return "\n".join(line for line in "".join(kept).split("\n") if line.strip())

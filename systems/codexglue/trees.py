"""Syntax trees as flat lists: what CodeBLEU's tree part and its data flow both read."""

from __future__ import annotations

import ctypes
import io
import re
import tokenize
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from systems.codexglue.metrics import library

Compat = Literal["official", "pypi", "fixed"]
"""Comments are cut by C's rule in every language ("official"), or by the language's own ("pypi", "fixed"). Names are
cut out of lines of characters by columns in bytes ("official", "pypi"), or right in any code ("fixed")."""

_COMMENT_OR_STRING = re.compile(r'//.*?$|/\*.*?\*/|\'(?:\\.|[^\\\'])*\'|"(?:\\.|[^\\"])*"', re.DOTALL | re.MULTILINE)
STRINGS = frozenset({"string_literal", "string", "character_literal"})
_WHOLE = STRINGS | {"comment"}

@dataclass(frozen=True)
class Tree:
    """The nodes of one snippet in preorder: the nodes below node k are k + 1 to end[k] - 1, its first child k + 1.

    A token is a leaf, or a string literal whole, and no comment; those of node k are first[k] to first[end[k]] - 1.
    texts: (tokens,); place: (tokens,) its number, that of the last token with the same extent; variable: (tokens,)
    whether its text is another than its kind, as it is for names and literals but not for marks and keywords;
    leaf_kinds: (tokens,).
    inner: (named nodes that are no remark on an error,) whether each has children.
    regular: no node without a name has children.
    """

    nodes: list[Any]
    kinds: list[str]
    counts: list[int]
    end: list[int]
    first: list[int]
    texts: list[str]
    place: list[int]
    variable: list[bool]
    leaf_kinds: list[str]
    inner: bytes
    regular: bool
    errors: bool

    def children(self, index: int) -> list[int]:
        """The children of a node, in order."""
        found, child, stop = [], index + 1, self.end[index]
        while child < stop:
            found.append(child)
            child = self.end[child]
        return found

    def child(self, index: int, field: str) -> int | None:
        """The first child in a field of its parent; None where there is none."""
        node = self.nodes[index].child_by_field_name(field)
        if node is None:
            return None
        return next(child for child in self.children(index) if self.nodes[child].id == node.id)

    def subtrees(self) -> int:
        """Nodes with children, and the root."""
        return sum(count > 0 for count in self.counts) + (self.counts[0] == 0)

    def expressions(self) -> list[str]:
        """The S-expressions of the root and of every node with children."""
        return [str(node) for k, node in enumerate(self.nodes) if self.counts[k] or k == 0]


def plant(parser: Any, code: str, compat: Compat = "official") -> Tree:
    """Parse a snippet with a tree-sitter parser."""
    encoded = code.encode("utf-8", "replace")
    root = parser.parse(encoded).root_node
    broken = root.has_error
    nodes: list[Any] = []
    counts: list[int] = []
    stack = [root]
    while stack:
        node = stack.pop()
        below = node.children
        nodes.append(node)
        counts.append(len(below))
        if below:
            stack += below[::-1]
    total = len(nodes)
    kinds = [node.type for node in nodes]
    end = [0] * total
    for k in range(total - 1, -1, -1):
        after = k + 1
        for _ in range(counts[k]):
            after = end[after]
        end[k] = after

    first, leaves = _tokens(kinds, counts, end)
    starts, ends = [nodes[k].start_byte for k in leaves], [nodes[k].end_byte for k in leaves]
    texts = _texts(code, encoded, starts, ends, compat)
    place = list(range(len(leaves)))
    if broken and any(map(int.__eq__, starts, ends)):  # only empty tokens can be in one place
        latest = {extent: k for k, extent in enumerate(zip(starts, ends, strict=True))}
        place = [latest[extent] for extent in zip(starts, ends, strict=True)]
        texts = [texts[k] for k in place]
    leaf_kinds = [kinds[k] for k in leaves]
    variable = [kind != text for kind, text in zip(leaf_kinds, texts, strict=True)]

    if broken:
        inner = bytes([n > 0 for n, node in zip(counts, nodes, strict=True) if node.is_named and not _is_remark(node)])
    else:
        inner = bytes([n > 0 for n, node in zip(counts, nodes, strict=True) if node.is_named])
    regular = root.is_named and not root.is_missing and sum(inner) == total - counts.count(0)
    return Tree(
        nodes, kinds, counts, end, first, texts, place, variable, leaf_kinds, inner, regular, broken
    )  # fmt: skip


def _tokens(kinds: list[str], counts: list[int], end: list[int]) -> tuple[list[int], list[int]]:
    """(`first` of a tree, the nodes that are tokens)."""
    if _WHOLE.isdisjoint(kinds):
        return [0, *accumulate([not count for count in counts])], [k for k, count in enumerate(counts) if not count]
    first: list[int] = []
    leaves: list[int] = []
    inside = 0  # the end of a string literal that is one token
    for k, (kind, count) in enumerate(zip(kinds, counts, strict=True)):
        first.append(len(leaves))
        if k >= inside and (not count or kind in STRINGS) and kind != "comment":
            leaves.append(k)
            if count:
                inside = end[k]
    first.append(len(leaves))
    return first, leaves


def _is_remark(node: Any) -> bool:
    """Whether an S-expression shows a node as missing or as not expected."""
    return node.is_missing or (node.type == "ERROR" and not node.child_count and str(node).startswith("(UNEXPECTED"))


def shared_subtrees(reference: Tree, hypothesis: Tree) -> int:
    """Sub-trees of the reference (the root, and nodes with children) that are anywhere in the hypothesis.

    Equal are those with one S-expression, which shows named nodes and fields. In a regular tree that of a node is a
    part of its root's, so that one text a tree is enough.
    """
    compiled = library()
    if compiled is None or not (reference.regular and hypothesis.regular):
        there = set(hypothesis.expressions())
        return sum(text in there for text in reference.expressions())
    texts = [str(tree.nodes[0]).encode() for tree in (reference, hypothesis)]
    found: int = compiled.shared_spans(
        texts[0], ctypes.c_int64(len(texts[0])), reference.inner,
        texts[1], ctypes.c_int64(len(texts[1])), hypothesis.inner,
    )  # fmt: skip
    if found < 0:
        raise MemoryError("no memory to compare two trees")
    return found


def _texts(code: str, encoded: bytes, starts: list[int], ends: list[int], compat: Compat) -> list[str]:
    if len(encoded) == len(code):
        texts = [code[a:b] for a, b in zip(starts, ends, strict=True)]
    elif compat == "fixed":
        texts = [encoded[a:b].decode("utf-8", "replace") for a, b in zip(starts, ends, strict=True)]
    else:
        return _shifted_texts(code, encoded, starts, ends)
    return [text.replace("\n", "") if "\n" in text else text for text in texts]


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

"""Labelled sets from any folder of Python source, by the rules of the benchmark.

    files = token_completion(Path("src").rglob("*.py"))          # rows as of code_completion_token
    rows = line_completion(files, count=1000, seed=0)            # rows as of code_completion_line
    blanks = cloze(paths, ["max", "min"], seed=0)                # rows as of cloze_maxmin, with their answers
    found = search(paths)                                        # rows as of code_search_adv and code_summarization

The standard library is always there to build from. Files that are not UTF-8, or not Python, are passed over and
counted by the caller's `skipped` list where one is given. One seed, one result.
"""

from __future__ import annotations

import ast
import io
import keyword
import random
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

END_OF_LINE = "<EOL>"
LITERALS = {"str": 200, "num": 30}
"""How many of the most frequent strings and numbers keep their text."""

_STRING = re.compile(r"^([A-Za-z]*)('''|\"\"\"|'|\")(.*)\2$", re.DOTALL)
_SKIPPED = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
)


def _sources(paths: Iterable[Path], skipped: list[Path] | None) -> Iterator[tuple[Path, str]]:
    for path in sorted(paths):
        try:
            text = path.read_text(encoding="utf-8")
            ast.parse(text)
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
            if skipped is not None:
                skipped.append(path)
            continue
        yield path, text


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SKIPPED:
            yield token.type, token.string


def frequent_literals(texts: Iterable[str], limits: Mapping[str, int] = LITERALS) -> dict[str, list[str]]:
    """The most frequent contents of strings, and numbers, of Python code; the first seen of equally frequent ones."""
    strings: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for text in texts:
        for kind, token in _tokens(text):
            if kind == tokenize.STRING:
                strings[_content(token)] += 1
            elif kind == tokenize.NUMBER:
                numbers[token] += 1
    return {
        "str": [text for text, _ in strings.most_common(limits["str"])],
        "num": [text for text, _ in numbers.most_common(limits["num"])],
    }


def _content(token: str) -> str:
    found = _STRING.match(token)
    return found[3].replace("\n", "U+000A").replace(" ", "U+0020").replace(",", "U+002C") if found else token


def normalised(text: str, literals: Mapping[str, Sequence[str]]) -> list[str]:
    """Tokens of a file: `<EOL>` for line ends, `<STR_LIT>` and `<NUM_LIT>` for literals that are not among these."""
    strings, numbers = frozenset(literals["str"]), frozenset(literals["num"])
    found = ["<s>"]
    for kind, token in _tokens(text):
        if kind == tokenize.NEWLINE:
            if found[-1] != END_OF_LINE:
                found.append(END_OF_LINE)
        elif kind == tokenize.STRING:
            content, quoted = _content(token), _STRING.match(token)
            prefix, quote = (quoted[1], quoted[2]) if quoted else ("", "'")
            kept = f"<STR_LIT:{content}>" if content in strings else "<STR_LIT>"
            found.append(f"{prefix}{quote}{kept}{quote}")
        elif kind == tokenize.NUMBER:
            found.append(f"<NUM_LIT:{token}>" if token in numbers else "<NUM_LIT>")
        elif not any(mark.isspace() for mark in token):
            found.append(token)
        else:
            found.append("<STR_LIT>")  # a part of a formatted string
    return [*found, "</s>"]


def token_completion(
    paths: Iterable[Path], literals: Mapping[str, Sequence[str]] | None = None, skipped: list[Path] | None = None
) -> list[list[str]]:
    """A tokenised file a row, in order of path. literals: as of `frequent_literals`, of these files by default."""
    texts = [text for _, text in _sources(paths, skipped)]
    chosen = literals if literals is not None else frequent_literals(texts)
    return [normalised(text, chosen) for text in texts]


def line_completion(files: Sequence[Sequence[str]], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows {id, input, gt}: a file cut at a random token, and the rest of that line.

    Raises ValueError where no file has a line of two tokens.
    """
    random_ = random.Random(seed)
    places = [
        (number, at)
        for number, tokens in enumerate(files)
        for at in range(2, len(tokens) - 1)
        if tokens[at] != END_OF_LINE and tokens[at - 1] != END_OF_LINE
    ]
    if not places:
        raise ValueError("no line of two tokens to cut")
    rows = []
    for key, (number, at) in enumerate(sorted(random_.sample(places, min(count, len(places))))):
        tokens = files[number]
        stop = next((k for k in range(at, len(tokens)) if tokens[k] in {END_OF_LINE, "</s>"}), len(tokens))
        rows.append({"id": key, "input": " ".join(tokens[:at]), "gt": " ".join(tokens[at:stop])})
    return rows


def cloze(
    paths: Iterable[Path], candidates: Sequence[str], seed: int = 0, skipped: list[Path] | None = None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows {idx, nl_tokens, pl_tokens}, answers by idx): functions with one use of a candidate word masked.

    A function counts if it has a docstring of 3 to 256 words. Raises ValueError without candidates, or for one that is
    a keyword.
    """
    wanted = frozenset(candidates)
    if not wanted:
        raise ValueError("no candidate words")
    if bad := sorted(filter(keyword.iskeyword, wanted)):
        raise ValueError(f"candidates that are keywords: {', '.join(bad)}")
    random_ = random.Random(seed)
    rows: list[dict[str, Any]] = []
    answers: dict[str, str] = {}
    for _, text in _sources(paths, skipped):
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            words = (ast.get_docstring(node) or "").split("\n\n")[0].split()
            if not 3 <= len(words) <= 256:
                continue
            code = ast.unparse(_without_docstring(node))
            tokens = [token for _, token in _tokens(code + "\n") if token.strip()]
            places = [k for k, token in enumerate(tokens) if token in wanted]
            if not places:
                continue
            at = random_.choice(places)
            key = f"built-{len(rows)}"
            answers[key] = tokens[at]
            rows.append({"idx": key, "nl_tokens": words, "pl_tokens": [*tokens[:at], "<mask>", *tokens[at + 1 :]]})
    return rows, answers


def search(
    paths: Iterable[Path], *, masked: bool = False, skipped: list[Path] | None = None
) -> list[dict[str, Any]]:
    """Rows {idx, url, func_name, code, code_tokens, docstring, docstring_tokens}: documented functions.

    As the benchmark filters them: the first paragraph of the docstring has 3 to 256 words, no link or tag, and is
    ASCII; the function parses, is three lines and more, no test and no `__method__`; of equal codes the first is kept.
    masked: the function's name, its arguments and variables are `Func`, `arg_0`, `arg_1`, ... as in the test part of
    AdvTest, so that a query's words are not found in them.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for path, text in _sources(paths, skipped):
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("__") or "test" in node.name.lower():
                continue
            docstring = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").strip()
            words = re.findall(r"\w+|[^\w\s]", docstring)
            bare = _without_docstring(node)
            code = ast.unparse(ast.fix_missing_locations(_masked(bare) if masked else bare))
            if not 3 <= len(words) <= 256 or not docstring.isascii() or _LINK.search(docstring):
                continue
            if code in seen or code.count("\n") < 2:
                continue
            seen.add(code)
            rows.append({
                "idx": len(rows), "url": f"{path.name}#L{node.lineno}", "func_name": node.name, "code": code,
                "code_tokens": [token for _, token in _tokens(code + "\n") if token.strip()],
                "docstring": docstring, "docstring_tokens": words,
            })  # fmt: skip
    return rows


_LINK = re.compile(r"https?:|www\.|<\w+[^>]*>")


def _masked(node: ast.FunctionDef) -> ast.FunctionDef:
    """A copy with the names that the function itself binds replaced by `Func`, `arg_0`, `arg_1`, ..."""
    copy = ast.parse(ast.unparse(ast.fix_missing_locations(node))).body[0]
    assert isinstance(copy, ast.FunctionDef)
    names = {copy.name: "Func"}
    arguments = [a for part in ast.walk(copy) if isinstance(part, ast.arg) for a in (part.arg,)]
    stored = [n.id for n in ast.walk(copy) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    outer = {name for n in ast.walk(copy) if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
    for name in (*arguments, *stored):
        if name not in outer:
            names.setdefault(name, f"arg_{len(names) - 1}")
    for part in ast.walk(copy):
        if isinstance(part, ast.Name):
            part.id = names.get(part.id, part.id)
        elif isinstance(part, ast.arg):
            part.arg = names.get(part.arg, part.arg)
        elif isinstance(part, ast.FunctionDef):
            part.name = names.get(part.name, part.name)
        elif isinstance(part, ast.ExceptHandler) and part.name:
            part.name = names.setdefault(part.name, f"arg_{len(names) - 1}")
    return copy


def _without_docstring(node: ast.FunctionDef) -> ast.FunctionDef:
    body = node.body[1:] or [ast.Pass()]
    return ast.FunctionDef(**{**dict(ast.iter_fields(node)), "body": body, "lineno": 1, "col_offset": 0})

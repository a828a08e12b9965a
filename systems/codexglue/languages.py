"""The languages that CodeBLEU knows: grammar, keywords, and what the data flow makes of each kind of node.

Keywords and rules are those of the official scripts where these have the language, oddities included (JavaScript's
`True`), since a score is only comparable with the same ones. C and C++ go by the rules of C#.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

PINNED: Mapping[str, str] = {
    "tree-sitter": "0.26.1",
    "tree-sitter-java": "0.23.5",
    "tree-sitter-c-sharp": "0.23.5",
    "tree-sitter-python": "0.25.0",
    "tree-sitter-go": "0.25.0",
    "tree-sitter-php": "0.25.1",
    "tree-sitter-javascript": "0.25.0",
    "tree-sitter-ruby": "0.23.1",
    "tree-sitter-c": "0.24.2",
    "tree-sitter-cpp": "0.23.4",
}
"""Versions that the recorded scores were made with: another grammar makes other trees, and so other scores."""

Kinds = frozenset[str]
NONE: Kinds = frozenset()


@dataclass(frozen=True)
class Rules:
    """Kinds of nodes by what they do to data.

    pairs: assignments relate the children of both sides one by one where there are as many (Python, Ruby), else every
    name to every source. branches: kinds that are the alternatives of a conditional; only_clauses: what is no branch
    runs in order also after a branch (Python, Ruby); always_before: the state before joins even after an else.
    loop_start: the child after which the body of a counted loop is walked again.
    """

    assignments: Kinds
    definitions: Kinds
    value_field: str = "value"
    conditionals: Kinds = NONE
    branches: Kinds = NONE
    only_clauses: bool = False
    joins_before: Literal["without else", "always"] = "without else"
    increments: Kinds = NONE
    counted_loops: Kinds = NONE
    loop_start: str = ""
    for_each: Kinds = NONE
    for_each_fields: tuple[str, str, str] = ("name", "value", "body")
    whiles: Kinds = NONE
    first: Kinds = NONE  # children that are walked before their siblings
    pairs: bool = False


def _words(text: str) -> Kinds:
    return frozenset(text.split())


def _curly(
    assignments: str, definitions: str, *, branches: str = "if_statement else", increments: str = "",
    whiles: str = "while_statement", for_each: str = "", **others: Any,
) -> Rules:  # fmt: skip
    """Rules of a language with C's control flow; kinds as words of a string."""
    return Rules(
        assignments=_words(assignments), definitions=_words(definitions), conditionals=_words(branches),
        branches=_words(branches), increments=_words(increments), counted_loops=frozenset({"for_statement"}),
        whiles=_words(whiles), for_each=_words(for_each), **others,
    )  # fmt: skip


@dataclass(frozen=True)
class Language:
    """A language: its grammar's package and function, its keywords, its rules of data flow."""

    name: str
    package: str
    keywords: Kinds
    rules: Rules = field(repr=False)
    function: str = "language"

    @property
    def module(self) -> str:
        """What is imported for the grammar."""
        return self.package.replace("-", "_")


_CSHARP = _curly(
    "assignment_expression", "variable_declarator", value_field="second child", increments="postfix_unary_expression",
    loop_start="local_variable_declaration", for_each="for_each_statement", for_each_fields=("left", "right", "body"),
)  # fmt: skip

LANGUAGES: Mapping[str, Language] = {
    language.name: language
    for language in (
        Language(
            "java", "tree-sitter-java",
            _words("""abstract assert boolean break byte case catch char class const continue default do double else
            enum extends final finally float for goto if implements import instanceof int interface long native new
            package private protected public return short static strictfp super switch synchronized this throw throws
            transient try void volatile while"""),
            _curly(
                "assignment_expression", "variable_declarator", increments="update_expression",
                loop_start="local_variable_declaration", for_each="enhanced_for_statement",
            ),
        ),
        Language(
            "c_sharp", "tree-sitter-c-sharp",
            _words("""abstract as base bool break byte case catch char checked class const continue decimal default
            delegate do double else enum event explicit extern false finally fixed float for foreach goto if implicit
            in int interface internal is lock long namespace new null object operator out override params private
            protected public readonly ref return sbyte sealed short sizeof stackalloc static string struct switch this
            throw true try typeof uint ulong unchecked unsafe ushort using virtual void volatile while add alias
            ascending async await by descending dynamic equals from get global group into join let nameof notnull on
            orderby partial remove select set unmanaged value var when where yield"""),
            _CSHARP,
        ),
        Language(
            "python", "tree-sitter-python",
            _words("""False None True and as assert async await break class continue def del elif else except finally
            for from global if import in is lambda nonlocal not or pass raise return try while with yield match case
            type"""),
            Rules(
                assignments=frozenset({"assignment", "augmented_assignment", "for_in_clause"}),
                definitions=frozenset({"default_parameter"}), conditionals=frozenset({"if_statement"}),
                branches=frozenset({"elif_clause", "else_clause"}), only_clauses=True,
                for_each=frozenset({"for_statement"}), for_each_fields=("left", "right", "block"),
                whiles=frozenset({"while_statement"}), first=frozenset({"for_in_clause"}), pairs=True,
            ),
        ),
        Language(
            "go", "tree-sitter-go",
            _words("""break default func interface select case defer go map struct chan else goto package switch const
            fallthrough if range type continue for import return var false true"""),
            _curly(
                "assignment_statement", "var_spec", increments="inc_statement", joins_before="always",
                loop_start="for_clause", whiles="",
            ),
        ),
        Language(
            "php", "tree-sitter-php",
            _words("""__halt_compiler abstract and array as break callable case catch class clone const continue
            declare default die do echo else elseif empty enddeclare endfor endforeach endif endswitch endwhile eval
            exit extends final for foreach function global goto if implements include include_once instanceof insteadof
            interface isset list namespace new or print private protected public require require_once return static
            switch throw trait try unset use var while xor"""),
            _curly(
                "assignment_expression augmented_assignment_expression", "simple_parameter",
                value_field="default_value", branches="if_statement else_clause", increments="update_expression",
                joins_before="always", loop_start="assignment_expression", for_each="foreach_statement",
            ),
            function="language_php",
        ),
        Language(
            "javascript", "tree-sitter-javascript",
            _words("""await break case catch class const continue debugger default delete do else enum export extends
            false finally for function if implements import in instanceof interface let new null package private
            protected public return super switch static this throw try True typeof var void while with yield"""),
            _curly(
                "assignment_pattern augmented_assignment_expression", "variable_declarator",
                increments="update_expression", joins_before="always", loop_start="variable_declaration",
            ),
        ),
        Language(
            "ruby", "tree-sitter-ruby",
            _words("""__ENCODING__ __LINE__ __FILE__ BEGIN END alias and begin break case class def defined? do else
            elsif end ensure false for if in module next nil not or redo rescue retry return self super then true undef
            unless until when while yield"""),
            Rules(
                assignments=frozenset({"assignment", "operator_assignment"}),
                definitions=frozenset({"keyword_parameter"}),
                conditionals=frozenset({"if", "elsif", "else", "unless", "when"}),
                branches=frozenset({"if", "elsif", "else", "unless", "when"}), only_clauses=True,
                for_each=frozenset({"for"}), for_each_fields=("pattern", "value", "body"),
                whiles=frozenset({"while_modifier", "until"}), pairs=True,
            ),
        ),
        Language(
            "c", "tree-sitter-c",
            _words("""auto else long switch break enum register typedef case extern return union char float short
            unsigned const for signed void continue goto sizeof volatile default if static while do int struct
            _Packed double"""),
            _CSHARP,
        ),
        Language(
            "cpp", "tree-sitter-cpp",
            _words("""auto const double float int short struct unsigned break continue else for long signed switch void
            case default enum goto register sizeof typedef volatile char do extern if return static union while asm
            dynamic_cast namespace reinterpret_cast bool explicit new static_cast typeid catch false try operator
            template typename class friend private this using const_cast inline public throw virtual delete mutable
            protected true wchar_t and bitand compl not_eq or_eq xor_eq and_eq bitor not or xor cin endl INT_MIN
            iomanip main npos std cout include INT_MAX iostream MAX_RAND NULL string"""),
            _CSHARP,
        ),
    )
}  # fmt: skip


def language(name: str) -> Language:
    """A language by name. Raises KeyError, which lists the names."""
    if name not in LANGUAGES:
        raise KeyError(f"no language {name!r}; there are {', '.join(LANGUAGES)}")
    return LANGUAGES[name]


@lru_cache(maxsize=len(PINNED))
def parser(name: str) -> Any:
    """A tree-sitter parser of a language. Raises KeyError; ImportError where its grammar is not installed."""
    import tree_sitter

    chosen = language(name)
    grammar = importlib.import_module(chosen.module)
    return tree_sitter.Parser(tree_sitter.Language(getattr(grammar, chosen.function)()))


def versions(name: str) -> dict[str, str]:
    """Installed versions of what a language's trees come from."""
    return {package: importlib.metadata.version(package) for package in ("tree-sitter", language(name).package)}


def other_than_pinned(name: str) -> dict[str, str]:
    """Those of `versions` that are not the pinned ones."""
    return {package: found for package, found in versions(name).items() if found != PINNED[package]}

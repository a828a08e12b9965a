"""The project's own small programs: `programs/*.rs`, each with the verdict that it must get.

A file holds several programs, each begun by `//- name` and, if another is meant, its edition. A line that must be
reported carries `// expect: kind, kind`; a program without such a line must be verified."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Program:
    """`text` is a whole file for the verifier; `expected` are (line, kind) pairs in it."""

    name: str
    edition: str
    text: str
    expected: frozenset[tuple[int, str]]

    @property
    def right(self) -> bool:
        return not self.expected


def programs() -> list[Program]:
    """All of them, by file and place."""
    found = []
    for path in sorted(FOLDER.glob("*.rs")):
        parts = re.split(r"^//- (.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for head, body in zip(parts[1::2], parts[2::2], strict=True):
            name, _, edition = head.partition(" ")
            text = f"use vstd::prelude::*;\nverus! {{\n{body}}} // verus!\n"
            expected = frozenset(
                (number, kind.strip())
                for number, line in enumerate(text.splitlines(), 1)
                for kind in (line.partition("// expect: ")[2].split(",") if "// expect: " in line else ())
            )
            found.append(Program(f"{path.stem}/{name}", edition or "current", text, expected))
    return found

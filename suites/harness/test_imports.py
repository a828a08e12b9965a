"""What may import what (the table of the architecture), read from the imports themselves."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("systems", "fixtures", "suites", "reports")
DRAWERS = re.compile(r"(^|_)(utils?|common|helpers?|misc|base)$")


def imports_of(path: Path) -> set[str]:
    """Absolute names of the project's own modules that a file imports, at any depth of its code."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


def allowed_for(path: Path) -> tuple[str, ...]:
    """Prefixes of the project's modules that the file at `path` may import."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "systems":
        if len(parts) == 2:
            return ("systems.native", "systems.evm")
        return (f"systems.{parts[1]}", "systems.native", *(["systems.evm"] if parts[1] in {"agatha", "argus"} else []))
    if parts[0] == "fixtures":
        return ("fixtures", "systems.anubis", "systems.evm")
    if parts[0] == "reports":
        return ("reports", "systems.anubis")
    if parts[0] == "suites" and parts[1] == "harness":
        return OURS
    if parts[0] == "suites" and parts[1] == "hardware":
        return ("systems.anubis.probes", "suites.hardware")
    if parts[0] == "suites" and parts[1] == "anubis":
        return ("systems.anubis", "systems.native", "suites.anubis")
    if parts[0] == "suites":
        return (f"systems.{parts[1]}", f"suites.{parts[1]}", "systems.evm", "systems.native")
    return ()


def sources() -> list[Path]:
    return [
        path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_its_folder_may(path):
    allowed = allowed_for(path)
    wrong = {
        name
        for name in imports_of(path)
        if not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    }
    assert not wrong, (
        f"{path.relative_to(ROOT)} may import {', '.join(allowed) or 'nothing of ours'}, not {sorted(wrong)}"
    )


def test_the_root_conftest_only_lists_plugins():
    tree = ast.parse((ROOT / "conftest.py").read_text(encoding="utf-8"))
    statements = [
        node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert [type(node).__name__ for node in statements] == ["Assign"]
    for name in ast.literal_eval(statements[0].value):
        assert name == "pytester" or (ROOT / f"{name.replace('.', '/')}.py").exists(), name


def test_no_module_is_a_drawer():
    assert not [path for path in sources() if DRAWERS.search(path.stem)]


def test_seeds_and_criteria_hold_data_only():
    assert not [path for folder in ("seeds", "criteria") for path in (ROOT / folder).rglob("*.py")]


def test_importing_a_system_does_not_load_torch_triton_or_pytest_by_itself():
    import subprocess

    code = (
        "import sys, systems.anubis.records, systems.anubis.machine, systems.anubis.validator, systems.native;"
        "print([m for m in ('torch', 'triton', 'pytest', 'fixtures') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

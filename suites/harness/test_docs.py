"""The documents keep their word: every Python example of a system's page runs, every file they link is there."""

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
from itertools import product

import pytest

from suites.harness.test_gate import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("systems/*/README.md")]
)
TOOLS = sorted(path for folder in ("systems/*", "reports") for path in ROOT.glob(f"{folder}/__main__.py"))


def examples():
    for page in ROOT.glob("systems/*/README.md"):
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(code, id=f"{page.parent.name}-{number}")


@pytest.mark.parametrize("code", list(examples()))
def test_the_examples_of_a_system_page_run_and_print_what_they_say(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [
        line.rpartition("#")[2].strip() for line in code.splitlines() if line.startswith("print(") and "  # " in line
    ]
    assert done.stdout.split("\n")[: len(said)] == said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_that_a_page_names_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\s*make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


# ------------------------------------------------------------------------------------------------------ commands


def commands(start):
    """(page, words) of every command that begins by `start`, in code of the pages and in the help of the tools."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        lines = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        for given in (*inline, *lines, *re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)):
            yield from expanded(page, given.replace("\\|", "|"), start)
    for tool in TOOLS:
        for node in ast.walk(ast.parse(tool.read_text(encoding="utf-8"))):
            for line in str(node.value).splitlines() if isinstance(node, ast.Constant) else ():
                _, found, command = line.partition(f"{start} ")
                yield from expanded(tool, re.split(r"\s{2,}", found + command)[0], start)


def expanded(page, line, start):
    """One line, up to a comment, a semicolon or the end of the quotation; `{a, b}` and `a | b | c` are a command each,
    of which only the help is asked for. A tool by its bare name is no command."""
    line = " ".join(re.split(r"\s#|[`;]", line.strip())[0].split())
    if not line.startswith(f"{start} "):
        return
    line = re.sub(r"(\w+(?: \| \w+)+)", lambda words: "{" + words[1].replace(" |", ",") + "}", line)
    parts = re.split(r"\{([^}]*)\}", line)
    choices = [part.replace(" ", "").split(",") if k % 2 else [part] for k, part in enumerate(parts)]
    for chosen in product(*choices):
        words = shlex.split("".join(chosen))
        if len(words) > len(start.split()) + 1:
            yield page, tuple([*words, "--help"] if len(choices) > 1 and words[-1] != "--help" else words)


class Understood(Exception):
    """The command line was parsed, and nothing has been done yet."""


TOOL_COMMANDS = sorted({words for _, words in commands("python -m")})


@pytest.mark.parametrize("words", TOOL_COMMANDS, ids=" ".join)
def test_every_command_of_a_tool_that_a_page_or_its_help_shows_is_understood(words, monkeypatch, capsys):
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, *given, **named):
        parse(parser, *given, **named)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    package = ROOT.joinpath(*words[2].split("."))
    tool = importlib.import_module(f"{words[2]}.__main__" if package.is_dir() else words[2])
    with pytest.raises((Understood, SystemExit)) as ended:
        tool.main(list(words[3:]))
    assert ended.type is Understood or ended.value.code == 0, capsys.readouterr().err


def test_every_pytest_command_names_files_and_options_that_exist():
    helped = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    seen = 0
    for page, words in commands("pytest"):
        for word in words[1:]:
            where = f"{page.relative_to(ROOT)}: {' '.join(words)}"
            assert not word.startswith("--") or word.split("=")[0] in helped, where
            assert not word.startswith("suites") or (ROOT / word.split("::")[0]).exists(), where
        seen += 1
    assert seen > 5


def test_every_tool_shows_an_example_of_each_of_its_commands():
    shown = {(words[2], words[3]) for words in TOOL_COMMANDS if len(words) > 3}
    for tool in TOOLS:
        name = ".".join(tool.parent.relative_to(ROOT).parts)
        assert any(module == name for module, _ in shown), f"{name}: no example in its help or page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_shell_and_yaml_examples_can_be_read(page):
    yaml = pytest.importorskip("yaml")
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        read = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
        assert read.returncode == 0, read.stderr
    for code in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert list(yaml.safe_load_all(code))

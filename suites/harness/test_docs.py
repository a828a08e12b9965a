"""The documents keep their word: every Python example of a system's page runs, every file they link is there."""

import re
import subprocess
import sys

import pytest

from suites.harness.test_gate import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("systems/*/README.md")])


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

# Each target sets up .venv by itself, and does nothing twice.
#   make gate      judge this machine: run the suites, judge them, write report/index.html
#   make test      every acceptance and property test, and each benchmark once
#   make nightly   record all tests and benchmarks, build the report; ARGS=--resume takes up an interrupted one
#   make gpu       record what runs on a GPU only, build the report
#   make lint      linter and type checker
# ARGS="..." goes to pytest; PYTHON=... chooses the interpreter (3.11 or 3.12).

PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
ARGS ?=
RUNS ?= runs
REPORT ?= report
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: gate test nightly gpu lint clean

gate: .venv/base
	@$(PY) -m pytest suites/*/bench_*.py --gate --runs $(RUNS) --benchmark-quiet --benchmark-max-time=0.6 $(ARGS); status=$$?; \
	$(PY) -m reports build $(RUNS) -o $(REPORT) && exit $$status

test: .venv/test
	$(PY) -m pytest suites -m "not slow" -n 2 --dist worksteal $(ARGS)

nightly: .venv/test
	@$(PY) -m pytest suites --record --runs $(RUNS) --benchmark-quiet $(ARGS); status=$$?; \
	$(PY) -m reports build $(RUNS) -o $(REPORT) && exit $$status

gpu: .venv/test
	@$(PY) -m pytest suites -m gpu --record --runs $(RUNS) --benchmark-quiet $(ARGS); status=$$?; \
	$(PY) -m reports build $(RUNS) -o $(REPORT) && exit $$status

lint: .venv/lint
	$(PY) -m ruff check .
	$(PY) -m mypy

.venv/python:
	@test -n "$(PYTHON)" || { echo "maat needs Python 3.11 or 3.12, and finds none; give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/base: .venv/python pyproject.toml constraints.txt
	@echo "installing what the gate needs into .venv"
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/test: .venv/base
	@echo "installing what the tests need into .venv"
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

.venv/lint: .venv/base
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[lint]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info

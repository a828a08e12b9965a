"""The `verus` binary behind the interface of the embedded verifier.

The binary is `$VERUS` or the first `verus` on the path. It writes the counts as JSON to its standard output and rustc's
diagnostics as JSON lines to its standard error; whatever else it says is a problem of the backend, never a verdict."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systems.safe.syntax import BackendProblem
from systems.safe.verifier import Diagnostic, Limits, Report

RLIMIT_UNIT = 3_000_000
"""Resource units of the solver to one unit of Verus's own `--rlimit`."""
_RESOURCES = "Resource limit"


@dataclass(frozen=True)
class VerusBinary:
    """Verify with a `verus` executable at `path`. The edition is whatever that binary implements."""

    path: Path

    @classmethod
    def find(cls) -> VerusBinary | None:
        """The one that `$VERUS` names or the search path holds; None where there is none."""
        named = os.environ.get("VERUS") or shutil.which("verus")
        return cls(Path(named)) if named and Path(named).is_file() else None

    def verify(self, source: str, *, limits: Limits | None = None) -> Report:
        """The binary's report on a program. Raises BackendProblem when it cannot be run or answers in another form."""
        limits = limits or Limits()
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "program.rs"
            file.write_text(source, encoding="utf-8")
            arguments = [
                str(self.path), str(file), "--crate-type=lib", "--output-json", "--error-format=json",
                "--multiple-errors", "50", "--rlimit", str(max(1, limits.rlimit // RLIMIT_UNIT)),
            ]  # fmt: skip
            try:
                done = subprocess.run(
                    arguments, cwd=folder, capture_output=True, text=True, timeout=limits.seconds * 10, check=False
                )
            except subprocess.TimeoutExpired:
                problem = Diagnostic("resource limit exceeded", 1, 1, "", "verus ran out of time", (), "resource_limit")
                return Report(False, 0, 1, False, (problem,), 0, time.perf_counter() - started, 0, "verus")
            except OSError as error:
                raise BackendProblem(f"cannot run {self.path}: {error}") from error
        return read(done.stdout, done.stderr, time.perf_counter() - started)


def read(output: str, errors: str, seconds: float) -> Report:
    """A report from what `verus` wrote to its two streams."""
    results = _results(output)
    diagnostics = tuple(_diagnostics(errors))
    if results is None and not diagnostics:
        raise BackendProblem(f"verus gave no result and no diagnostic: {(output + errors).strip()[:300]!r}")
    found = results or {}
    verified, failed = int(found.get("verified", 0)), int(found.get("errors", 0))
    compile_error = results is None or bool(found.get("encountered-vir-error")) or (not failed and bool(diagnostics))
    ok = bool(found.get("success")) and failed == 0 and not diagnostics
    return Report(ok, verified, failed, compile_error and not ok, diagnostics, 0, seconds, 0, "verus", "binary")


def _results(output: str) -> dict[str, Any] | None:
    start = output.find("{")
    if start < 0:
        return None
    try:
        entry, _ = json.JSONDecoder().raw_decode(output[start:])
    except ValueError as error:
        raise BackendProblem(f"verus wrote JSON that cannot be read: {error}") from error
    found = entry.get("verification-results") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else None


def _diagnostics(errors: str) -> Iterator[Diagnostic]:
    for line in errors.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or entry.get("level") != "error" or not entry.get("spans"):
            continue
        spans = entry["spans"]
        main = next((span for span in spans if span.get("is_primary")), spans[0])
        labels = tuple((int(span["line_start"]), str(span["label"])) for span in spans if span.get("label"))
        message = str(entry.get("message", ""))
        status = "resource_limit" if message.startswith(_RESOURCES) else "failed"
        yield Diagnostic(
            message, int(main["line_start"]), int(main["column_start"]), "", message, labels, status
        )  # fmt: skip

"""SAFE: proofs for Rust programs written in Verus (arXiv 2410.15756).

    from systems.safe import verify

    report = verify(source)
    report.ok, report.verified, report.errors
    for problem in report.diagnostics:
        print(problem.line, problem.message)

`verify` is the embedded verifier; `gate` says whether a candidate does no more than prove its task.
"""

from systems.safe.gate import Violation, gate
from systems.safe.solve import Cache
from systems.safe.syntax import (
    BackendProblem,
    ModeProblem,
    ProgramProblem,
    SafeError,
    SyntaxProblem,
    TypeProblem,
    Unsupported,
)
from systems.safe.verifier import Diagnostic, Limits, Report, verify, verify_many

__all__ = [
    "BackendProblem",
    "Cache",
    "Diagnostic",
    "Limits",
    "ModeProblem",
    "ProgramProblem",
    "Report",
    "SafeError",
    "SyntaxProblem",
    "TypeProblem",
    "Unsupported",
    "Violation",
    "gate",
    "verify",
    "verify_many",
]

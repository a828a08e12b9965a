"""SAFE: proofs for Rust programs written in Verus (arXiv 2410.15756).

    from systems.safe import verify

    report = verify(source)
    report.ok, report.verified, report.errors
    for problem in report.diagnostics:
        print(problem.line, problem.message)

    proof = prove(task)
    proof.ok, proof.program, proof.added

`verify` is the embedded verifier; `gate` says whether a candidate does no more than prove its task; `prove` searches
for such a candidate.
"""

from systems.safe.gate import Violation, gate
from systems.safe.prove import Proof, prove, prove_many
from systems.safe.sketch import Candidate
from systems.safe.solve import Cache
from systems.safe.specs import ScoredSpec, SpecScore, score_spec, synthesize_specs
from systems.safe.syntax import (
    BackendProblem,
    ModeProblem,
    ProgramProblem,
    SafeError,
    SyntaxProblem,
    TypeProblem,
    Unsupported,
)
from systems.safe.verifier import Diagnostic, Embedded, Limits, Report, Verifier, verify, verify_many
from systems.safe.verus import VerusBinary

__all__ = [
    "BackendProblem",
    "Cache",
    "Candidate",
    "Diagnostic",
    "Embedded",
    "Limits",
    "ModeProblem",
    "ProgramProblem",
    "Proof",
    "Report",
    "SafeError",
    "ScoredSpec",
    "SpecScore",
    "SyntaxProblem",
    "TypeProblem",
    "Unsupported",
    "Verifier",
    "VerusBinary",
    "Violation",
    "gate",
    "prove",
    "prove_many",
    "score_spec",
    "synthesize_specs",
    "verify",
    "verify_many",
]

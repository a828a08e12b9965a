"""Traces and claims as files: data only, written whole or not at all, checked when they are read.

    save_trace(path, trace, model)          # one safetensors file: every node's output, and the root over them
    save_claim(path, Filed(court, claim))   # JSON: the contract's address, the job, the claimed roots

A file carries what others must agree on; where a game stands is not in it, for the contract's events tell that.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from systems.agatha.commit import Job, Model, Trace
from systems.agatha.descriptor import ProofError
from systems.agatha.game import Claim

__all__ = ["Filed", "load_claim", "load_trace", "save_claim", "save_trace"]

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Filed:
    """A claim, and the address of the contract that holds it."""

    court: str
    claim: Claim


def save_trace(path: str | Path, trace: Trace, model: Model) -> None:
    """Write the output of every node, as committed, with the roots of trace and model. Raises OSError."""
    from safetensors.numpy import save

    tensors = {f"{node:06d}": np.frombuffer(data, np.uint8) for node, data in enumerate(trace.tensors)}
    _write(Path(path), save(tensors, {"trace": trace.root.hex(), "model": model.root.hex()}))


def load_trace(path: str | Path, model: Model) -> Trace:
    """The trace that `save_trace` wrote.

    Raises ProofError naming the file where it is none, is of another model, or does not hash to its own root.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
    except SafetensorError as error:
        raise ProofError(f"{path} holds no trace ({error}); make one by `python -m systems.agatha run`") from error
    if header.get("model") != model.root.hex():
        raise ProofError(
            f"{path} is a trace of model {header.get('model')}, the network given is {model.root.hex()}: "
            "run the network again"
        )
    sizes = [descriptor.output_bytes for descriptor in model.descriptors]
    if [tensor.nbytes for tensor in tensors] != sizes or any(tensor.dtype != np.uint8 for tensor in tensors):
        raise ProofError(f"{path}: its tensors are not the outputs of the network's {len(sizes)} nodes")
    trace = Trace([tensor.tobytes() for tensor in tensors])
    if trace.root.hex() != header.get("trace"):
        raise ProofError(f"{path}: its content has root {trace.root.hex()}, its header says {header.get('trace')}")
    return trace


def save_claim(path: str | Path, filed: Filed) -> None:
    """Write a claim as JSON. Raises OSError."""
    claim = filed.claim
    record = {
        "format": "agatha-claim-1",
        "court": filed.court,
        "submitter": claim.submitter,
        "model": claim.job.model_root.hex(),
        "nodes": claim.job.nodes,
        "input": claim.job.input_root.hex(),
        "output": claim.output_root.hex(),
        "trace": claim.trace_root.hex(),
        "id": claim.id.hex(),
    }
    _write(Path(path), (json.dumps(record, indent=1) + "\n").encode())


def load_claim(path: str | Path) -> Filed:
    """The claim that `save_claim` wrote. Raises ProofError naming the file and the field that is wrong."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProofError(f"{path} is no JSON ({error}); expected the file that `submit --claim` wrote") from error
    if not isinstance(record, dict) or record.get("format") != "agatha-claim-1":
        raise ProofError(f"{path} holds no claim; expected the file that `submit --claim` wrote")

    def text(name: str, shape: re.Pattern[str]) -> str:
        value = record.get(name)
        if not isinstance(value, str) or not shape.fullmatch(value):
            raise ProofError(f"{path}: {name} is {value!r}, expected {shape.pattern}")
        return value

    nodes: Any = record.get("nodes")
    if type(nodes) is not int or not 0 < nodes < 1 << 24:
        raise ProofError(f"{path}: nodes is {nodes!r}, expected 1 to 2^24 - 1")
    model, given, output, trace, stored = (
        bytes.fromhex(text(name, _HASH)) for name in ("model", "input", "output", "trace", "id")
    )
    claim = Claim(Job(model, nodes, given), output, trace, text("submitter", _ADDRESS))
    if claim.id != stored:
        raise ProofError(f"{path}: its fields make claim {claim.id.hex()}, its id says {stored.hex()}")
    return Filed(text("court", _ADDRESS), claim)


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

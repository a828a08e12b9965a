"""SAFE as a tool: `python -m systems.safe verify FILE...`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from systems.safe.corpus import programs
from systems.safe.evolve import Task, accuracy, describe, evolve
from systems.safe.gate import gate
from systems.safe.policy import Policy
from systems.safe.prove import prove
from systems.safe.solve import Cache
from systems.safe.specs import COMPLETE, CORRECT, score_spec, synthesize_specs
from systems.safe.syntax import BackendProblem, ProgramProblem, SafeError, Source
from systems.safe.verifier import EDITIONS, Limits, Report, plan, verify_many
from systems.safe.verus import VerusBinary

_EPILOG = """\
exit status: 0 everything verified (prove: proved, gate: honest), 1 not, 2 bad use

  python -m systems.safe verify proof.rs               the verdict, with the place of everything that fails
  python -m systems.safe verify *.rs --json            one JSON object a line
  python -m systems.safe verify proof.rs --smt out/    the obligations as SMT-LIB 2 files
  python -m systems.safe prove task.rs                 find the proof: writes task.proved.rs, tells what it added
  python -m systems.safe prove task.rs --endpoint http://localhost:8000/v1 --model name --draws 10   by a language model
  python -m systems.safe spec code.rs largest          specifications that pass the filter, with their scores
  python -m systems.safe evolve --out runs/            rounds of draw, verify, train; run again to go on
  python -m systems.safe evaluate runs/round-1/model.npz   Accuracy@1 and @10, with and without debugging
  python -m systems.safe report runs/ -o page.html     the rounds as a page: accuracy, draws, what fails most
  python -m systems.safe compare --data tasks.jsonl    baselines, search and a policy in one table
  python -m systems.safe gate task.rs candidate.rs     does the candidate only add a proof to the task?
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m systems.safe", description="Verify Rust programs written in Verus.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("verify", help="prove programs, or say what fails where")
    one.add_argument("files", nargs="+", type=Path, metavar="FILE")
    one.add_argument(
        "--edition", choices=EDITIONS, default="current", help="which verifier's rules hold (default: current)"
    )
    one.add_argument("--json", action="store_true", help="a JSON object for each file instead of text")
    one.add_argument("--smt", type=Path, metavar="DIR", help="also write every region's script there")
    one.add_argument("--cache", type=Path, metavar="DIR", help="keep verdicts there by content")
    one.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    one.add_argument(
        "--rlimit", type=int, default=Limits().rlimit, metavar="N", help="resource units for an obligation"
    )
    one.add_argument(
        "--backend", choices=("embedded", "verus", "both"), default="embedded",
        help="the embedded verifier, the `verus` binary ($VERUS or on the path), or both with their differences",
    )  # fmt: skip
    two = commands.add_parser("gate", help="refuse candidates that change the task or take things on faith")
    two.add_argument("task", type=Path)
    two.add_argument("candidate", type=Path)
    three = commands.add_parser("prove", help="search for invariants, assertions and lemmas that prove a program")
    three.add_argument("file", type=Path, metavar="FILE")
    three.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: FILE with .proved before its suffix")
    three.add_argument("--edition", choices=EDITIONS, default="current", help="default: current")
    three.add_argument("--seed", type=int, default=0, help="of the runs that refute candidates (default: 0)")
    three.add_argument("--endpoint", metavar="URL", help="ask an OpenAI-compatible endpoint instead of searching")
    three.add_argument("--model", metavar="NAME", help="of the endpoint; alone, a causal model of a folder or the hub")
    three.add_argument("--key-from-env", default="OPENAI_API_KEY", metavar="VARIABLE", help="holds the endpoint's key")
    three.add_argument("--draws", type=int, default=1, help="proofs to draw of a model (default: 1)")
    three.add_argument("--debug-steps", type=int, default=1, help="times a failed one is mended (default: 1)")
    _add_learning(commands)
    args = parser.parse_args(argv)
    actions = {
        "verify": _verify,
        "gate": _gate,
        "prove": _prove,
        "spec": _spec,
        "evolve": _evolve,
        "evaluate": _evaluate,
        "report": _report,
        "compare": _compare,
    }
    try:
        return actions[args.command](args)
    except (OSError, SafeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_learning(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    four = commands.add_parser("spec", help="propose specifications for a function and score them by test cases")
    four.add_argument("file", type=Path, metavar="FILE")
    four.add_argument("function", metavar="FUNCTION")
    four.add_argument("--correct", type=float, default=CORRECT, help=f"least correctness kept (default: {CORRECT})")
    four.add_argument("--complete", type=float, default=COMPLETE, help=f"least completeness kept (default: {COMPLETE})")
    five = commands.add_parser("evolve", help="rounds: draw proofs, verify, train on the right ones")
    five.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for each round; resumable")
    five.add_argument("--data", type=Path, metavar="JSONL", help="more test tasks: objects with task_id, source, task")
    five.add_argument("--programs", type=int, default=114, help="generated programs to train on (default: 114)")
    five.add_argument("--tests", type=int, default=42, help="generated programs of unseen shapes (default: 42)")
    five.add_argument("--rounds", type=int, default=2, help="rounds after the first (default: 2)")
    five.add_argument("--samples", type=int, default=4, help="draws for a program without a proof (default: 4)")
    five.add_argument("--first", type=float, default=0.25, help="part that round 0 may search (default: 0.25)")
    six = commands.add_parser("evaluate", help="Accuracy@k of a trained policy, with and without debugging")
    six.add_argument("model", type=Path, metavar="MODEL", help="model.npz of a round")
    six.add_argument("--data", type=Path, metavar="JSONL", help="tasks; generated ones of unseen shapes by default")
    six.add_argument("--tests", type=int, default=42, help="how many generated ones (default: 42)")
    six.add_argument("--k", type=int, nargs="+", default=[1, 10], help="draws (default: 1 10)")
    seven = commands.add_parser("report", help="the rounds of `evolve` as one HTML page")
    seven.add_argument("folder", type=Path, metavar="DIR", help="the --out of evolve")
    seven.add_argument("-o", "--output", type=Path, required=True, metavar="HTML")
    eight = commands.add_parser("compare", help="baselines, search and a trained policy on the same tasks")
    eight.add_argument("--data", type=Path, metavar="JSONL", help="tasks; generated ones of unseen shapes by default")
    eight.add_argument("--tests", type=int, default=42, help="how many generated ones (default: 42)")
    eight.add_argument("--model", type=Path, metavar="MODEL", help="model.npz of a round")
    eight.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of the baselines")
    for one in (five, six, eight):
        one.add_argument("--edition", choices=EDITIONS, default="current", help="default: current")
        one.add_argument("--seed", type=int, default=0, help="default: 0")
        one.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        print(f"{path}: error: not UTF-8: {error}", file=sys.stderr)
        return None


def _verify(args: argparse.Namespace) -> int:
    texts = [_read(path) for path in args.files]
    limits = Limits(rlimit=args.rlimit, workers=args.workers)
    cache = Cache(args.cache) if args.cache is not None else None
    status = 1 if None in texts else 0
    readable = [(path, text) for path, text in zip(args.files, texts, strict=True) if text is not None]
    reports = verify_many([text for _, text in readable], edition=args.edition, limits=limits, cache=cache)
    binary = _binary(args.backend)
    if binary is not None:
        reports = map(partial(_other_report, args, binary, limits), readable, reports)
    for number, ((path, text), report) in enumerate(zip(readable, reports, strict=True), 1):
        if not report.ok:
            status = 1
        if args.json:
            print(json.dumps({"file": str(path), **dataclasses.asdict(report)}), flush=True)
        else:
            print(render(path, text, report), flush=True)
        if len(readable) > 1 and sys.stderr.isatty():
            print(
                f"\r{number}/{len(readable)}", end="" if number < len(readable) else "\n", file=sys.stderr, flush=True
            )
        if args.smt is not None:
            _write_scripts(args.smt, path, text, args.edition, limits)
    return status


def _binary(backend: str) -> VerusBinary | None:
    if backend == "embedded":
        return None
    found = VerusBinary.find()
    if found is None:
        raise BackendProblem("no `verus` found: set $VERUS to the binary, or put it on the path")
    return found


def _other_report(
    args: argparse.Namespace, binary: VerusBinary, limits: Limits, named: tuple[Path, str], embedded: Report
) -> Report:
    """The binary's report; where both were asked and differ, the difference is told and the stricter one counts."""
    path, text = named
    other = binary.verify(text, limits=limits)
    if args.backend == "verus":
        return other
    if other.ok != embedded.ok:
        print(f"{path}: embedded says {embedded.ok}, verus says {other.ok}", file=sys.stderr)
    return embedded if not embedded.ok else other


def _write_scripts(folder: Path, path: Path, text: str, edition: str, limits: Limits) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = plan(text, edition=edition, limits=limits)
    for number, (region, script) in enumerate(zip(made.regions, made.scripts, strict=True)):
        (folder / f"{path.stem}.{number:03}.{region.function.replace(':', '_')}.{region.what}.smt2").write_text(
            script.text + "\n", encoding="utf-8"
        )


def render(path: Path, text: str, report: Report) -> str:
    """Diagnostics in rustc's manner, and Verus's summary line."""
    source = Source(text)
    lines = []
    for problem in report.diagnostics:
        shown = source.line(problem.line)
        width = len(str(problem.line))
        lines += [
            f"error: {problem.message}",
            f"{' ' * width}--> {path}:{problem.line}:{problem.column}",
            f"{problem.line} | {shown}",
            f"{' ' * width} | {' ' * (problem.column - 1)}^",
        ]
        lines += [f"{' ' * width} = line {line}: {label}" for line, label in problem.labels]
        lines.append("")
    suffix = " (not checked further)" if report.compile_error else ""
    errors = report.errors or (1 if report.compile_error else 0)
    lines.append(f"verification results:: {report.verified} verified, {errors} errors{suffix}")
    return "\n".join(lines)


def _prove(args: argparse.Namespace) -> int:
    text = _read(args.file)
    if text is None:
        return 1
    if args.endpoint or args.model:
        return _prove_by_model(args, text)
    proof = prove(text, edition=args.edition, seed=args.seed)
    if not proof.ok:
        print(render(args.file, text, proof.report))
        print(f"no proof found among {proof.candidates} candidates ({proof.seconds:.1f} s): {proof.why}")
        return 1
    output = _write_proved(args, proof.program)
    source = Source(text)
    for one in proof.added:
        print(f"{args.file}:{source.position(one.place.offset)[0]}: {one.place.kind} {one.text}")
    print(f"proved: {output} ({len(proof.added)} of {proof.candidates} candidates, {proof.seconds:.1f} s)")
    return 0


def _write_proved(args: argparse.Namespace, program: str) -> Path:
    output: Path = args.output or args.file.with_suffix(f".proved{args.file.suffix}")
    written = output.with_name(f"{output.name}.part")
    written.write_text(program, encoding="utf-8")
    written.replace(output)
    return output


def _prove_by_model(args: argparse.Namespace, text: str) -> int:
    from systems.safe.language_models import Attempt, HuggingFace, OpenAICompatible, Proposer, draw

    if args.endpoint and not args.model:
        raise SafeError("--endpoint needs --model, the name that the endpoint knows it by")
    if args.draws < 1 or args.debug_steps < 0:
        raise SafeError(f"{args.draws} draws, {args.debug_steps} debugging steps: expected at least 1 and 0")
    proposer: Proposer = HuggingFace(args.model)
    if args.endpoint:
        proposer = OpenAICompatible(args.endpoint, args.model, key_from_env=args.key_from_env)

    def told(attempt: Attempt) -> None:
        said = "right" if attempt.ok else attempt.why or "; ".join(dict.fromkeys(p.message for p in attempt.problems))
        print(f"draw {attempt.name}: {said or 'the gate refuses it'}", file=sys.stderr, flush=True)

    try:
        found = draw(
            text, proposer, draws=args.draws, debug_steps=args.debug_steps, edition=args.edition, seed=args.seed,
            progress=told,
        )  # fmt: skip
    except ProgramProblem as problem:
        line, column = Source(text).position(problem.span.start)
        raise SafeError(f"{args.file}:{line}:{column}: {problem}") from problem
    read, written = found.tokens
    cost = f"{len(found.attempts)} draws, {read} tokens read, {written} written, {found.seconds:.1f} s"
    if not found.ok:
        print(f"no proof: {cost}")
        return 1
    print(f"proved: {_write_proved(args, found.program)} ({cost})")
    return 0


def _spec(args: argparse.Namespace) -> int:
    text = _read(args.file)
    if text is None:
        return 1
    found = synthesize_specs(text, args.function, correct=args.correct, complete=args.complete)
    own = score_spec(text, args.function)
    print(f"its own ensures: correctness {own.correctness:.2f}, completeness {own.completeness:.2f}, {own.cases} cases")
    for one in found:
        print(f"correctness {one.score.correctness:.2f}, completeness {one.score.completeness:.2f}:")
        print("".join(f"    {clause},\n" for clause in one.ensures), end="")
    if not found:
        print("no specification passes the filter")
    return 0 if found else 1


def _tasks(path: Path | None, count: int, seed: int) -> list[Task]:
    """Tasks of a file, or generated ones of shapes that no training set has."""
    if path is None:
        return _generated(count, seed + 1, held_out=True)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Task(str(row["task_id"]), str(row.get("source", path.stem)), str(row["task"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise SafeError(f"{path}: expected one JSON object a line with task_id and task: {error}") from error


def _generated(count: int, seed: int, *, held_out: bool) -> list[Task]:
    made = programs(count, seed, held_out=held_out)
    return [Task(f"{one.shape}-{one.seed}", one.shape, one.text) for one in made]


def _evolve(args: argparse.Namespace) -> int:
    tests: dict[str, list[Task]] = {"unseen": _generated(args.tests, args.seed + 1, held_out=True)}
    if args.data is not None:
        tests[args.data.stem] = _tasks(args.data, 0, args.seed)
    found = evolve(
        _generated(args.programs, args.seed, held_out=False), tests, args.out, rounds=args.rounds,
        samples=args.samples, first=args.first, edition=args.edition, seed=args.seed,
        limits=Limits(workers=args.workers), progress=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    for done in found.rounds:
        for name, table in done.tables.items():
            print(f"round {done.number}, {name}: {describe(table)}; {done.proofs} proofs, {done.repairs} repairs")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    tasks = _tasks(args.data, args.tests, args.seed)
    limits = Limits(workers=args.workers)
    policy = Policy.load(args.model)
    table = accuracy(tasks, policy, k=args.k, edition=args.edition, seed=args.seed, limits=limits)
    rows = [("total", table.total), *table.by_source.items()]
    for name, columns in rows:
        for column, share in columns.items():
            low, high = share.interval
            print(
                f"{name:16} {column:10} {share.solved:4} of {share.total:4} {share.value:6.1f} %  {low:.1f}-{high:.1f}"
            )
    for column, share in table.total.items():
        print(f"{column}: {share.draws} programs verified")
    return 0


def _report(args: argparse.Namespace) -> int:
    from systems.safe.dashboard import dashboard, read_rounds

    page = dashboard(read_rounds(args.folder), f"Self-evolution: {args.folder.resolve().name}")
    part = args.output.with_name(f"{args.output.name}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(args.output)
    print(args.output)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from systems.safe.baselines import compare

    policy = Policy.load(args.model) if args.model is not None else None
    lines = compare(
        _tasks(args.data, args.tests, args.seed), policy=policy, names=args.only, edition=args.edition,
        seed=args.seed, limits=Limits(workers=args.workers),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    for line in lines:
        low, high = line.share.interval
        print(
            f"{line.name:24} {line.share.solved:4} of {line.share.total:4} {line.share.value:6.1f} %  "
            f"{low:.1f}-{high:.1f}  {line.seconds:6.2f} s a task", flush=True,
        )  # fmt: skip
    return 0


def _gate(args: argparse.Namespace) -> int:
    task, candidate = _read(args.task), _read(args.candidate)
    if task is None or candidate is None:
        return 1
    try:
        violations = gate(task, candidate)
    except ProgramProblem as problem:
        line, column = Source(task).position(problem.span.start)
        print(f"{args.task}:{line}:{column}: error: {problem}", file=sys.stderr)
        return 2
    for violation in violations:
        print(f"{args.candidate}:{violation.line}: {violation.kind}: {violation.message}")
    if not violations:
        print("honest: the candidate adds nothing but ghost code")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

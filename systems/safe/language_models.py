"""Language models as proposers: any OpenAI-compatible endpoint, or a local Hugging Face model.

    found = draw(task, OpenAICompatible("http://localhost:8000/v1", "my-model"), draws=10, debug_steps=1)

A reply is asked for, its code block is read, its ghost code is transplanted into the task, and the verifier and the
gate judge the result. What cannot be read is an attempt that failed, with its reason; nothing of it is ever run.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from systems.safe.evolve import AccuracyTable, Task, Verdict, Verdicts, accuracy_table
from systems.safe.gate import gate
from systems.safe.syntax import ProgramProblem, SafeError
from systems.safe.transplant import NoProgram, code_of, transplant
from systems.safe.verifier import Diagnostic, Limits, verify

TEMPERATURE = 0.7
INSTRUCTIONS = """\
You write proofs for Rust programs in Verus. You are given a program with its specification. Add what the verifier \
needs to accept it: loop invariants, `decreases`, assertions, proof blocks, lemmas. Do not change the code, the \
`requires` and `ensures`, and never write `assume`, `admit` or a trust attribute. Answer with the whole program in \
one ``` block."""

_EXAMPLE = (
    """\
verus! {
fn count_up(n: u32) -> (r: u32)
    ensures r == n,
{
    let mut i: u32 = 0;
    while i < n
    {
        i += 1;
    }
    i
}
}""",
    """\
verus! {
fn count_up(n: u32) -> (r: u32)
    ensures r == n,
{
    let mut i: u32 = 0;
    while i < n
        invariant
            i <= n,
        decreases n - i,
    {
        i += 1;
    }
    i
}
}""",
)


class EndpointProblem(SafeError):
    """An endpoint that gives no usable answer, after all tries."""


@dataclass(frozen=True)
class Reply:
    """What a model wrote, and the tokens that it read and wrote where it says so."""

    text: str
    read: int = 0
    written: int = 0


class Proposer(Protocol):
    """Writes a proof of a task, or mends an attempt that the verifier complained of."""

    def propose(
        self, task: str, attempt: str = "", problems: Sequence[Diagnostic] = (), *, temperature: float = 0.0,
        seed: int = 0,
    ) -> Reply:  # fmt: skip
        """A reply with the whole program in a code block. Raises EndpointProblem."""
        ...


def conversation(task: str, attempt: str = "", problems: Sequence[Diagnostic] = ()) -> list[dict[str, str]]:
    """Instructions, one worked example, the task, and for debugging the attempt with what the verifier said of it."""
    messages = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": f"```rust\n{_EXAMPLE[0]}\n```"},
        {"role": "assistant", "content": f"```rust\n{_EXAMPLE[1]}\n```"},
        {"role": "user", "content": f"```rust\n{task.strip()}\n```"},
    ]
    if attempt:
        told = "\n".join(
            f"line {one.line}: {one.message}" + "".join(f"; line {line}: {text}" for line, text in one.labels)
            for one in problems
        )
        messages += [
            {"role": "assistant", "content": f"```rust\n{attempt.strip()}\n```"},
            {"role": "user", "content": f"The verifier says:\n{told or 'it could not be read'}\nMend the proof."},
        ]
    return messages


# --------------------------------------------------------------------------------------------------------- endpoints


@dataclass(frozen=True)
class OpenAICompatible:
    """A chat endpoint. url: its base, such as http://localhost:8000/v1; key_from_env: the variable that holds the key.

    A failed call is tried again `retries` times, each time after twice as long.
    """

    url: str
    model: str
    key_from_env: str = "OPENAI_API_KEY"
    most_tokens: int = 4096
    seconds: float = 120.0
    retries: int = 3
    pause: float = 1.0

    def propose(
        self, task: str, attempt: str = "", problems: Sequence[Diagnostic] = (), *, temperature: float = 0.0,
        seed: int = 0,
    ) -> Reply:  # fmt: skip
        """See `Proposer`."""
        body = {
            "model": self.model, "messages": conversation(task, attempt, problems), "temperature": temperature,
            "max_tokens": self.most_tokens, "seed": seed,
        }  # fmt: skip
        wait, last = self.pause, ""
        for turn in range(self.retries + 1):
            if turn:
                time.sleep(wait)
                wait *= 2
            try:
                return _reply(self._asked(body))
            except urllib.error.HTTPError as error:
                last = f"status {error.code}: {error.read(300).decode('utf-8', 'replace')}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    break  # asking again changes nothing
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                last = f"{type(error).__name__}: {error}"
        raise EndpointProblem(f"{self.url}: no answer of {self.model} after {turn + 1} tries: {last}")

    def _asked(self, body: dict[str, Any]) -> Any:
        if not self.url.startswith(("http://", "https://")):
            raise EndpointProblem(f"{self.url!r} is no address of an endpoint: expected http:// or https://")
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_from_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=self.seconds) as answer:
            return json.loads(answer.read())


def _reply(record: Any) -> Reply:
    usage = record.get("usage") or {}
    text = record["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise ValueError(f"the message is {type(text).__name__}, expected text")
    return Reply(text, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))


# ------------------------------------------------------------------------------------------------------ local models


@dataclass
class HuggingFace:
    """A causal model of transformers, from a folder or by name. Raises SafeError where there is none."""

    name: str
    device: str = "cpu"
    most_tokens: int = 1024
    _loaded: tuple[Any, Any] | None = field(default=None, repr=False)

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.name)
                model: Any = AutoModelForCausalLM.from_pretrained(self.name)
                model.to(self.device).eval()
            except (OSError, ValueError) as error:
                first = str(error).strip().splitlines()[0]
                raise SafeError(f"{self.name}: no causal model there ({first}); give a folder or go online") from error
            self._loaded = tokenizer, model
        return self._loaded

    def propose(
        self, task: str, attempt: str = "", problems: Sequence[Diagnostic] = (), *, temperature: float = 0.0,
        seed: int = 0,
    ) -> Reply:  # fmt: skip
        """See `Proposer`."""
        import torch

        tokenizer, model = self._model()
        messages = conversation(task, attempt, problems)
        if getattr(tokenizer, "chat_template", None):
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            prompt = "\n\n".join(f"{one['role']}:\n{one['content']}" for one in messages) + "\n\nassistant:\n"
        given = tokenizer(prompt, return_tensors="pt")["input_ids"].to(self.device)
        longest = getattr(model.config, "max_position_embeddings", None) or given.shape[1] + self.most_tokens
        given = given[:, max(0, given.shape[1] - (longest - self.most_tokens)) :]
        torch.manual_seed(seed)
        sampled = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with torch.inference_mode():
            out = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=self.most_tokens, pad_token_id=pad,
                **sampled,
            )[0, given.shape[1] :]  # fmt: skip
        return Reply(tokenizer.decode(out, skip_special_tokens=True), given.shape[1], len(out))


# ----------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Attempt:
    """One draw: the program that came of a reply, the task's own where none did, what was said of it, and why a reply
    was no program. name: the draw's number, and +1, +2, ... for each time it was mended."""

    name: str
    program: str
    ok: bool
    problems: tuple[Diagnostic, ...] = ()
    why: str = ""
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Drawn:
    """What became of a task: every attempt, the first right one last if there is one."""

    ok: bool
    program: str
    attempts: tuple[Attempt, ...]
    seconds: float

    @property
    def tokens(self) -> tuple[int, int]:
        """(read, written) by the model in all attempts."""
        return sum(one.read for one in self.attempts), sum(one.written for one in self.attempts)


def proposal(
    task: str, proposer: Proposer, attempt: str, problems: Sequence[Diagnostic], temperature: float, seed: int
) -> tuple[str, str, Reply]:
    """(the program that came of one reply or the task's own, why it is none, the reply)."""
    try:
        reply = proposer.propose(task, attempt, problems, temperature=temperature, seed=seed)
    except EndpointProblem as error:
        return task, str(error), Reply("")
    try:
        candidate = code_of(reply.text)
        if gate(task, candidate) == []:
            return candidate, "", reply
        return transplant(task, candidate), "", reply
    except NoProgram as error:
        return task, str(error), reply
    except (ProgramProblem, RecursionError) as error:
        return task, f"the reply cannot be read: {error}", reply


def draw(
    task: str, proposer: Proposer, *, draws: int = 1, debug_steps: int = 1, edition: str = "current",
    limits: Limits | None = None, seed: int = 0, progress: Callable[[Attempt], None] = lambda attempt: None,
) -> Drawn:  # fmt: skip
    """Draw proofs until one is right: the first greedily, the others at temperature 0.7, each mended up to
    `debug_steps` times with what the verifier said. Raises ProgramProblem for a task that cannot be read."""
    limits = limits or Limits()
    started = time.perf_counter()
    gate(task, task)  # a task that cannot be read is the caller's
    made: list[Attempt] = []
    for number in range(draws):
        text = ""
        problems: tuple[Diagnostic, ...] = ()
        for step in range(debug_steps + 1):
            temperature = 0.0 if number == 0 and step == 0 else TEMPERATURE
            entropy = seed + 1000 * number + step
            program, why, reply = proposal(task, proposer, text, problems, temperature, entropy)
            verdict = Verdict(False) if why else _judged(task, program, edition, limits)
            name = f"{number}" + (f"+{step}" if step else "")
            made.append(Attempt(name, program, verdict.ok, verdict.problems, why, reply.read, reply.written))
            progress(made[-1])
            if verdict.ok:
                return Drawn(True, program, tuple(made), time.perf_counter() - started)
            text, problems = program, verdict.problems
    return Drawn(False, task, tuple(made), time.perf_counter() - started)


def _judged(task: str, program: str, edition: str, limits: Limits) -> Verdict:
    report = verify(program, edition=edition, limits=limits)
    return Verdict(report.ok and gate(task, program) == [], report.diagnostics)


def model_accuracy(
    tasks: Sequence[Task], proposer: Proposer, *, k: int = 1, debug: bool = True, edition: str = "current",
    seed: int = 0, limits: Limits | None = None, progress: Callable[[str], None] = lambda line: None,
) -> AccuracyTable:  # fmt: skip
    """Accuracy@1 (greedy) and @k (k draws at temperature 0.7) of a language model, with and without one debugging step
    of every failed draw; columns and costs as of `evolve.accuracy`."""
    limits = limits or Limits()
    verdicts = Verdicts(edition, limits)
    columns: dict[str, set[str]] = {}
    cost: dict[str, int] = {}

    def judged(rows: list[tuple[Task, str, str]]) -> list[tuple[Task, str, Verdict]]:
        asked: list[tuple[str, str, str, list[dict[str, Any]]]] = [
            (f"{task.name}/{turn}", task.text, program, []) for task, turn, program in rows
        ]
        found = verdicts.of(asked)
        return [(task, program, verdict) for (task, _, program), verdict in zip(rows, found, strict=True)]

    def round_of(name: str, chosen: Sequence[Task], turns: range, temperature: float) -> None:
        rows = []
        for turn in turns:
            for task in chosen:
                program, _, _ = proposal(task.text, proposer, "", (), temperature, seed + turn)
                rows.append((task, str(turn), program))
            progress(f"{name}: draw {turn + 1} of {len(turns)} for {len(chosen)} tasks")
        done = judged(rows)
        columns[name] = {task.name for task, _, verdict in done if verdict.ok}
        cost[name] = len(rows)
        if debug:
            wrong = [(task, program, v) for task, program, v in done if task.name not in columns[name]]
            mended = [
                (task, f"{number}+1", proposal(task.text, proposer, program, v.problems, temperature, seed)[0])
                for number, (task, program, v) in enumerate(wrong)
            ]
            fixed = {task.name for task, _, verdict in judged(mended) if verdict.ok}
            columns[f"{name}+debug"], cost[f"{name}+debug"] = columns[name] | fixed, cost[name] + len(mended)

    round_of("@1", tasks, range(1), 0.0)
    if k > 1:
        round_of(f"@{k}", tasks, range(k), TEMPERATURE)
    return accuracy_table(tasks, columns, cost)

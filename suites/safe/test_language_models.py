"""Language models as proposers: an endpoint in all its moods, a tiny local model, and replies that touch the code."""

import http.server
import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.safe import ProgramProblem, SafeError, corpus, gate, prove, verify
from systems.safe.__main__ import main
from systems.safe.evolve import Task
from systems.safe.language_models import (
    EndpointProblem,
    HuggingFace,
    OpenAICompatible,
    Reply,
    conversation,
    draw,
    model_accuracy,
)
from systems.safe.transplant import NoProgram, code_of, transplant

TASK = """\
verus! {

fn copy_all(v: &Vec<i32>) -> (r: Vec<i32>)
    ensures r@ == v@,
{
    let mut r: Vec<i32> = Vec::new();
    let mut i: usize = 0;
    while i < v.len()
    {
        r.push(v[i]);
        i += 1;
    }
    r
}

} // verus!
"""
CLAUSES = """    while i < v.len()
        invariant
            i <= v.len(),
            r.len() == i,
            forall|k: int| 0 <= k < i ==> r[k] == v[k],
        decreases v.len() - i,
"""
PROVED = TASK.replace("    while i < v.len()\n", CLAUSES).replace("    r\n}", "    assert(r@ =~= v@);\n    r\n}")
OTHER_CODE = PROVED.replace("let mut i: usize = 0;", "let mut i: usize = 0; let unused: usize = 7;").replace(
    "r.push(v[i]);", "let item = v[i]; r.push(item);"
)
CHEAT = TASK.replace("    r\n}", "    assume(r@ == v@);\n    r\n}")


def block(text):
    return f"Here is the proof.\n```rust\n{text}```\nIt is right."


class Scripted:
    """A proposer that gives these replies, one after the other, and notes what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def propose(self, task, attempt="", problems=(), *, temperature=0.0, seed=0):
        self.asked.append((attempt, tuple(problems), temperature, seed))
        return Reply(self.texts.pop(0) if self.texts else "no idea", 10, 5)


# ------------------------------------------------------------------------------------------------------- transplants


def test_the_sample_is_right():
    assert verify(PROVED).ok
    assert gate(TASK, PROVED) == []
    assert not verify(TASK).ok
    assert gate(TASK, OTHER_CODE) != []


def test_ghost_code_of_a_reply_that_changed_the_code_is_put_into_the_task():
    found = transplant(TASK, OTHER_CODE)
    assert gate(TASK, found) == []
    assert verify(found).ok
    assert "unused" not in found
    assert "item" not in found


def test_a_weakened_specification_does_not_come_along():
    found = transplant(TASK, PROVED.replace("ensures r@ == v@,", "ensures true,"))
    assert "ensures\n        r@ == v@," in found
    assert gate(TASK, found) == []


def test_lemmas_come_along_and_code_does_not():
    reply = PROVED.replace(
        "verus! {\n",
        "verus! {\nproof fn nothing() ensures 1int + 1 == 2, {}\nfn more() -> (x: u8) ensures x == 1, { 1 }\n",
    )
    found = transplant(TASK, reply)
    assert "proof fn nothing" in found
    assert "fn more" not in found
    assert verify(found).ok


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(corpus.SHAPES)), st.integers(0, 60))
def test_a_task_into_itself_and_its_proof_into_it(shape, seed):
    made = corpus.program(shape, seed)
    if made is None:
        return
    assert gate(made.text, transplant(made.text, made.text)) == []
    proof = prove(made.text)
    if proof.ok:
        found = transplant(made.text, proof.program)
        assert gate(made.text, found) == []
        assert verify(found).ok
        assert transplant(made.text, found) == found


@pytest.mark.parametrize(
    ("reply", "holds"),
    [
        ("```rust\nfn a() {}\n```\nor\n```\nfn b() {}\n```", "fn b()"),
        ("fn c() {}", "fn c()"),
        ("```\nverus! {\nfn d() {}\n}\n```", "verus! {\nfn d() {}\n}"),
    ],
)
def test_the_last_block_with_a_function_is_the_program(reply, holds):
    assert holds in code_of(reply)
    assert code_of(reply).count("verus!") == 1


@pytest.mark.parametrize("reply", ["", "I cannot.", "```\nlet x = 1;\n```", "```fn broken"])
def test_a_reply_without_a_program_is_none(reply):
    with pytest.raises(NoProgram, match="no program in a reply"):
        code_of(reply)


# ------------------------------------------------------------------------------------------------------------ drawing


def test_a_wrong_proof_is_mended_with_what_the_verifier_said():
    model = Scripted(block(TASK), block(PROVED))
    found = draw(TASK, model)
    assert found.ok
    assert [one.name for one in found.attempts] == ["0", "0+1"]
    assert found.tokens == (20, 10)
    (first, second) = model.asked
    assert (first[0], first[1], first[2]) == ("", (), 0.0)
    assert second[0].strip() == TASK.strip()
    assert [problem.message for problem in second[1]] == ["loop must have a decreases clause"]
    told = conversation(TASK, second[0], second[1])[-1]["content"]
    assert f"line {second[1][0].line}: " in told


def test_cheats_and_rubbish_are_attempts_that_fail_with_a_reason():
    model = Scripted(block(CHEAT), "I cannot.", "```\nverus! { fn copy_all( }\n```", block(OTHER_CODE))
    found = draw(TASK, model, draws=4, debug_steps=0)
    assert [one.ok for one in found.attempts] == [False, False, False, True]
    assert "no program in a reply" in found.attempts[1].why
    assert "cannot be read" in found.attempts[2].why
    assert gate(TASK, found.program) == []
    assert [asked[2] for asked in model.asked] == [0.0, 0.7, 0.7, 0.7]
    assert len({asked[3] for asked in model.asked}) == 4


def test_a_task_that_cannot_be_read_is_the_callers():
    with pytest.raises(ProgramProblem):
        draw("verus! { fn", Scripted())


def test_accuracy_of_a_model_counts_tasks_and_programs():
    tasks = [Task("a", "own", TASK), Task("b", "own", TASK.replace("copy_all", "copy_it"))]
    other = PROVED.replace("copy_all", "copy_it")
    table = model_accuracy(tasks, Scripted(block(PROVED), block(TASK), block(other), "no", "no", "no", "no"), k=2)
    assert (table.total["@1"].solved, table.total["@1"].draws) == (1, 2)
    assert (table.total["@1+debug"].solved, table.total["@1+debug"].draws) == (2, 3)
    assert (table.total["@2"].solved, table.total["@2"].draws) == (0, 4)
    assert table.by_source["own"]["@1"].total == 2


# ---------------------------------------------------------------------------------------------------------- endpoints


@pytest.fixture
def endpoint():
    """(address, list of answers to give, list of requests): an answer is a text, a status, or a function."""
    answers, requests = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            answer = answers.pop(0) if answers else 404
            if callable(answer):
                answer = answer()
            status, text = (answer, "busy") if isinstance(answer, int) else (200, answer)
            if status == 200 and not text.startswith("{"):
                message = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 7}}
                text = json.dumps(message)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", answers, requests
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_asked_as_openai_is(endpoint, monkeypatch):
    url, answers, requests = endpoint
    monkeypatch.setenv("SOME_KEY", "secret")
    answers.append(block(PROVED))
    model = OpenAICompatible(url, "m", key_from_env="SOME_KEY")
    assert draw(TASK, model, seed=5).ok
    ((path, headers, body),) = requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["seed"], body["temperature"]) == ("m", 5, 0.0)
    assert body["messages"][-1]["content"] == f"```rust\n{TASK.strip()}\n```"


def test_a_busy_endpoint_is_asked_again_and_a_refusal_is_not(endpoint):
    url, answers, requests = endpoint
    model = OpenAICompatible(url, "m", pause=0.01)
    answers += [503, "{broken", '{"choices": []}', block(PROVED)]
    assert model.propose(TASK).text == block(PROVED)
    assert len(requests) == 4
    answers.append(401)
    with pytest.raises(EndpointProblem, match="after 1 tries: status 401"):
        model.propose(TASK)
    answers += [500] * 9
    with pytest.raises(EndpointProblem, match="after 4 tries"):
        model.propose(TASK)


def test_an_endpoint_that_is_slow_or_down_loses_a_draw_and_no_more(endpoint):
    url, answers, _ = endpoint
    answers += [lambda: time.sleep(0.6) or "late", block(PROVED)]
    model = OpenAICompatible(url, "m", seconds=0.2, retries=0)
    found = draw(TASK, model, draws=2, debug_steps=0)
    assert found.ok
    assert "no answer of m after 1 tries" in found.attempts[0].why
    down = draw(TASK, OpenAICompatible("http://127.0.0.1:9", "m", retries=0), debug_steps=0)
    assert not down.ok
    assert down.program == TASK
    with pytest.raises(EndpointProblem, match="expected http"):
        OpenAICompatible("file:///etc", "m").propose(TASK)


def test_a_file_is_proved_by_an_endpoint_from_the_command_line(endpoint, tmp_path, capsys):
    url, answers, _ = endpoint
    file = tmp_path / "task.rs"
    file.write_text(TASK)
    answers += [block(TASK), block(OTHER_CODE)]
    assert main(["prove", str(file), "--endpoint", url, "--model", "m"]) == 0
    assert verify((tmp_path / "task.proved.rs").read_text()).ok
    assert "draw 0+1: right" in capsys.readouterr().err
    answers += ["no idea"] * 2
    assert main(["prove", str(file), "--endpoint", url, "--model", "m", "-o", str(tmp_path / "none.rs")]) == 1
    assert not (tmp_path / "none.rs").exists()
    assert main(["prove", str(file), "--endpoint", url]) == 2
    file.write_text("verus! { fn")
    assert main(["prove", str(file), "--endpoint", url, "--model", "m"]) == 2


# -------------------------------------------------------------------------------------------------------- local models


def test_a_tiny_model_of_a_folder_draws_and_repeats(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TASK], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(fast), eos_token_id=1, **size)).save_pretrained(tmp_path)
    model = HuggingFace(str(tmp_path), most_tokens=24)
    found = draw(TASK, model, draws=2, debug_steps=1)
    assert not found.ok
    assert len(found.attempts) == 4
    assert all(one.why for one in found.attempts)
    assert found.tokens[1] > 0
    again = [model.propose(TASK, temperature=0.7, seed=seed).text for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    with pytest.raises(SafeError, match="no causal model there"):
        HuggingFace(str(tmp_path / "nothing")).propose(TASK)

"""The three model families: they learn, they resume bit for bit, and what they answer is the official file."""

import math
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from suites.codexglue import miniature
from systems.codexglue import TASKS, evaluate
from systems.codexglue.__main__ import main
from systems.codexglue.baselines import CachedNgramModel, majority
from systems.codexglue.builders import cloze, token_completion
from systems.codexglue.data import load
from systems.codexglue.hub import fetch, write_layout
from systems.codexglue.metrics import bleu
from systems.codexglue.models import CausalLM, Encoder, ModelError, Seq2Seq, load_model
from systems.codexglue.recipes import (
    PAPER,
    answer,
    cloze_rows,
    completion_rows,
    model_for,
    paper_budget,
    train_model,
)
from systems.codexglue.tasks import MissingData
from systems.codexglue.training import CHECKPOINT, Budget, Recipe, TrainingError, batches

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
SHORT = Recipe(lr=3e-3, batch=16, length=64)


def library(first, count):
    """Files of the standard library, by name."""
    return sorted(STANDARD_LIBRARY.glob("*.py"))[first : first + count]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -------------------------------------------------------------------------------------------------------- they learn


def halves(training):
    return training.mean_loss(-0.1) <= training.mean_loss(0.05) / 2


def test_an_encoder_fills_masks_of_the_standard_library_better_than_the_commonest_word():
    words = ["append", "join", "len", "isinstance", "str", "range"]
    rows, answers = cloze(library(0, 170), words, seed=0)
    labelled = cloze_rows(rows, answers)
    held, seen = labelled[::4], [row for k, row in enumerate(labelled) if k % 4]
    model = model_for("cloze_maxmin", seen)
    model.recipe = replace(model.recipe, length=32)  # what stands next to the mask
    done = train_model("cloze_maxmin", model, seen, Budget(steps=120))
    assert halves(done)
    found = [line.split("<CODESPLIT>")[1] for line in answer("cloze_maxmin", model, held)]
    right = sum(word == row["answer"] for word, row in zip(found, held, strict=True)) / len(held)
    common = majority([row["answer"] for row in seen])
    chance = sum(row["answer"] == common for row in held) / len(held)
    assert right >= chance + 0.1, f"{right:.3f} against {chance:.3f}"


def test_a_causal_model_completes_tokens_of_files_it_has_not_seen():
    files = token_completion(library(20, 30))
    held, seen = files[::6], [file for k, file in enumerate(files) if k % 6]
    model = model_for("code_completion_token", completion_rows(seen))
    model.recipe = replace(model.recipe, length=64, batch=16)
    done = train_model("code_completion_token", model, completion_rows(seen), Budget(steps=150))
    assert done.mean_loss(-0.1) < 0.65 * done.mean_loss(0.05)
    tokens = [file[:400] for file in held]
    right = accuracy(model.next_tokens(tokens), tokens)
    commonest = majority([token for file in seen for token in file])
    chance = accuracy([["<s>", *[commonest] * (len(file) - 1)] for file in tokens], tokens)
    assert right >= chance + 0.1, f"{right:.3f} against {chance:.3f}"


def accuracy(found, files):
    """Share of right tokens, the first of a file and its end not counted."""
    places = [(a, b) for one, file in zip(found, files, strict=True) for a, b in list(zip(one, file, strict=True))[1:]]
    return sum(a == b for a, b in places) / len(places)


def test_an_encoder_decoder_learns_a_translation_that_copying_does_not_give():
    rows = miniature.pairs(400)
    held = miniature.pairs(40, seed=1)
    model = Seq2Seq.build([row[side] for row in rows for side in ("java", "cs")], recipe=SHORT)
    done = model.fit([row["java"] for row in rows], [row["cs"] for row in rows], Budget(steps=150))
    assert halves(done)
    found = model.predict([row["java"] for row in held], most=40)
    learned, copied = (bleu([row["cs"] for row in held], text).score for text in (found, [row["java"] for row in held]))
    assert learned >= 0.8
    assert learned > copied + 0.3


def test_vectors_of_programs_of_one_problem_lie_together():
    rows = [{"index": str(k), "label": k % 3, "code": miniature.program(k % 3, k)} for k in range(60)]
    model = Encoder.build([row["code"] for row in rows], "retrieve", recipe=SHORT)
    model.fit([row["code"] for row in rows[:30]], [row["label"] for row in rows[:30]], Budget(steps=30))
    vectors = model.vectors([row["code"] for row in rows[30:]])
    near = (vectors @ vectors.T - 2 * torch.eye(30).numpy()).argmax(1)
    assert sum(rows[30 + k]["label"] == rows[30 + int(other)]["label"] for k, other in enumerate(near)) >= 28


@pytest.mark.slow
@pytest.mark.claim("codexglue/codegpt-token")
def test_a_causal_model_beside_the_cached_ngrams(claim):
    """Held-back files of the standard library; the model has five minutes, n-grams need seconds."""
    files = token_completion(library(0, 160))
    held, seen = files[::8], [file for k, file in enumerate(files) if k % 8]
    model = model_for("code_completion_token", completion_rows(seen))
    train_model("code_completion_token", model, completion_rows(seen), Budget(minutes=5))
    tokens = [file[:1500] for file in held]
    peer = CachedNgramModel(seen)
    gain = 100 * (accuracy(model.next_tokens(tokens), tokens) - accuracy([peer.predict(f) for f in tokens], tokens))
    assert claim.holds(gain)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_translation_of_the_sample_pairs_beats_copying(data, measure):
    root = data("codexglue")
    train = list(load("code_translation", "train", "java-cs", root))
    test = list(load("code_translation", "test", "java-cs", root))[:200]
    model = model_for("code_translation", train)
    done = train_model("code_translation", model, train, Budget(minutes=12))
    found = list(answer("code_translation", model, test))
    gold = [row["target"] for row in test]
    measure.record("translation_bleu", bleu(gold, found).score, "1", better="higher")
    measure.record("training", done.tokens / done.seconds, "token/s")
    assert bleu(gold, found).score > bleu(gold, [row["source"] for row in test]).score


# ------------------------------------------------------------------------------------------------ from task to file


@pytest.mark.parametrize("name", [name for name in PAPER if name != "code_completion_line"])
def test_every_task_is_trained_and_answered_from_the_command_line(name, tmp_path, capsys):
    variant = (TASKS[name].variants or (None,))[0]
    rows = miniature.rows_of(name)
    for split in ("train", "test"):
        write_layout(name, split, variant, rows, tmp_path)
    chosen = ["--variant", variant] if variant else []
    model, out = tmp_path / "model", tmp_path / "predictions"
    if name.startswith("cloze"):  # the official sets have no training part
        labelled = [dict(row, answer=miniature.answer_of(row)) for row in rows]
        trained = model_for(name, labelled)
        train_model(name, trained, labelled, Budget(steps=2))
        trained.save(model)
    else:
        assert main(["train", name, *chosen, "--root", str(tmp_path), "--steps", "2", "--out", str(model)]) == 0
        assert (model / CHECKPOINT).exists()
    assert main(["predict", name, str(model), *chosen, "--root", str(tmp_path), "--out", str(out)]) == 0
    answers = tmp_path / "answers"
    answers.write_text("".join(f"{line}\n" for line in miniature.answers_of(name, rows)))
    assert 0 <= evaluate(name, answers, out, variant)[TASKS[name].metrics[0]] <= 100


def test_lines_are_completed_by_a_model_of_tokens(tmp_path):
    rows = miniature.rows_of("code_completion_token")
    model = model_for("code_completion_token", rows)
    train_model("code_completion_token", model, rows, Budget(steps=2))
    asked = miniature.rows_of("code_completion_line")
    answers, out = tmp_path / "answers", tmp_path / "predictions"
    answers.write_text("".join(f"{line}\n" for line in miniature.answers_of("code_completion_line", asked)))
    out.write_text("".join(f"{line}\n" for line in answer("code_completion_line", model, asked)))
    assert 0 <= evaluate("code_completion_line", answers, out, "py150")["edit_sim"] <= 100


def test_training_from_any_folder_of_python(tmp_path, capsys):
    (tmp_path / "code").mkdir()
    for k in range(4):
        (tmp_path / "code" / f"m{k}.py").write_text(
            f"def f{k}(values):\n    '''The largest of all values.'''\n    return max(values) + {k}\n"
        )
    for name in ("code_completion_token", "cloze_maxmin"):
        out = tmp_path / name
        assert main(["train", name, "--code", str(tmp_path / "code"), "--steps", "2", "--out", str(out)]) == 0
        assert (out / "model.safetensors").exists()
    assert main(["train", "defect_detection", "--code", str(tmp_path / "code"), "--out", str(tmp_path / "x")]) == 2
    assert "not of defect_detection" in capsys.readouterr().err
    assert main(["train", "cloze_maxmin", "--code", str(tmp_path / "x"), "--out", str(tmp_path / "x")]) == 2


# ------------------------------------------------------------------------------------------- the same run, the same end


@pytest.mark.parametrize("name", ["defect_detection", "clone_detection_poj104", "text_to_code", "code_translation"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(name, tmp_path):
    rows = [dict(row) for row in miniature.rows_of(name)]
    if name == "code_translation":
        rows = [{"source": row["java"], "target": row["cs"]} for row in rows]
    weights = []
    for stops in ([6], [2, 4, 6], [6]):
        folder = tmp_path / f"{len(weights)}"
        for steps in stops:
            torch.manual_seed(len(weights))  # whatever others drew in between
            model = model_for(name, rows)
            if steps < 6:
                stopped(name, model, rows, steps, folder)
            else:
                training = train_model(name, model, rows, Budget(steps=6), folder=folder)
        weights.append(([*training.losses], [p.detach().clone() for p in model.net.parameters()]))
    for losses, parameters in weights[1:]:
        assert losses == weights[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, weights[0][1], strict=True))


def stopped(name, model, rows, steps, folder):
    """The same training, interrupted after `steps`: what a kill leaves is the checkpoint of the last save."""
    from systems.codexglue import training

    class Enough(Exception):
        pass

    def counted(*arguments):
        real(*arguments)
        if len(arguments[4]) == steps:
            raise Enough

    real = training._save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_save", counted)
        whole = training.train

        def often(*arguments, **named):
            return whole(*arguments, **named, every=0.0)

        for family in ("encoder", "causal", "seq2seq"):
            patch.setattr(f"systems.codexglue.{family}.train", often)
        with pytest.raises(Enough):
            train_model(name, model, rows, Budget(steps=6), folder=folder)


def test_every_row_is_in_one_batch_of_an_epoch():
    lengths = [k % 7 for k in range(1001)]
    for epoch in range(2):
        parts = list(batches(lengths, 8, seed=0, epoch=epoch))
        assert sorted(row for part in parts for row in part) == list(range(1001))
    assert list(batches(lengths, 8, 0, 0)) == list(batches(lengths, 8, 0, 0))
    assert list(batches(lengths, 8, 0, 0)) != list(batches(lengths, 8, 0, 1))


def test_the_budget_of_base_size_is_that_of_the_paper():
    assert paper_budget("defect_detection", 21_854) == Budget(steps=5 * 683)
    assert paper_budget("code_translation", 10_300) is None


@pytest.fixture(scope="module")
def tiny():
    """A model of each family, untrained."""
    rows = miniature.pairs(40)
    texts = [row[side] for row in rows for side in ("java", "cs")]
    return {
        "encoder": Encoder.build(texts, "classify", seed=1),
        "compare": Encoder.build(texts, "compare", seed=1),
        "causal": CausalLM.build(texts, extra=("<EOL>",), seed=1),
        "seq2seq": Seq2Seq.build(texts, seed=1),
    }


def test_what_others_are_in_the_batch_does_not_matter(tiny):
    texts = [row["java"] * (1 + k % 3) for k, row in enumerate(miniature.pairs(9))]
    alone = torch.cat([tiny["encoder"].vectors_raw([text]) for text in texts])
    assert torch.allclose(tiny["encoder"].vectors_raw(texts), alone, atol=2e-5)
    assert tiny["seq2seq"].predict(texts, most=12) == [tiny["seq2seq"].predict([text], most=12)[0] for text in texts]
    assert tiny["causal"].complete(texts, most=8) == [tiny["causal"].complete([text], most=8)[0] for text in texts]
    assert tiny["encoder"].predict([]) == tiny["compare"].predict([]) == tiny["seq2seq"].predict([]) == []


def test_tokens_of_a_long_file_are_read_in_windows(tiny):
    model = tiny["causal"]
    tokens = ["<s>", "public", "int", "get_count", "(", ")", "{", "return", "count", ";", "}"] * 80
    found = model.next_tokens([tokens, tokens[:40], []])
    assert [len(one) for one in found] == [len(tokens), 40, 0]
    assert found[0][:40] == found[1]  # nothing later is looked at


def test_a_token_is_expected_only_if_all_its_subwords_and_its_end_are():
    model = CausalLM.build(["alpha beta"] * 3, seed=0)
    vocabulary = model.vocabulary
    pieces = [vocabulary.ids(f" {token}") for token in ("alpha", "beta", "alpha")]
    ids = [piece for token in pieces for piece in token]
    model._best_after = lambda given: [*ids[1:], vocabulary.ids(" alpha")[0]]  # always right, and a word follows
    assert model.next_tokens([["alpha", "beta", "alpha"]]) == [["<s>", "beta", "alpha"]]
    model._best_after = lambda given: [*ids[1:], vocabulary.ids("xa")[-1]]  # the last word would go on
    assert model.next_tokens([["alpha", "beta", "alpha"]])[0][2] != "alpha"


def test_a_model_of_files_answers_as_the_one_that_was_saved(tiny, tmp_path):
    texts = [row["java"] for row in miniature.pairs(6)]
    for name, model in tiny.items():
        model.save(tmp_path / name)
        again = load_model(tmp_path / name)
        for a, b in zip(model.net.parameters(), again.net.parameters(), strict=True):
            assert torch.equal(a, b)
        if name == "seq2seq":
            assert again.predict(texts, most=8) == model.predict(texts, most=8)
            assert again.net.decoder.lm_head.decoder.weight is again.net.encoder.embeddings.word_embeddings.weight
        elif name == "causal":
            assert again.complete(texts, most=8) == model.complete(texts, most=8)
        elif name == "encoder":
            assert again.predict(texts) == model.predict(texts)


def test_weights_from_a_folder_of_transformers(tmp_path):
    from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

    rows = [dict(row, answer=miniature.answer_of(row)) for row in miniature.rows_of("cloze_maxmin")]
    source = Encoder.build(["max min largest smallest of values return"] * 50, "classify")
    whole = RobertaForMaskedLM(source.net.body.config)
    whole.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=source.vocabulary.tokenizer).save_pretrained(tmp_path)
    model = model_for("cloze_maxmin", rows, start=str(tmp_path))
    assert isinstance(model, Encoder)
    text = "the largest </s> return <mask> ( values )"
    ids = [source.vocabulary.special("<s>"), *source.vocabulary.ids(text), source.vocabulary.special("</s>")]
    with torch.inference_mode():
        logits = whole.eval()(torch.tensor([ids])).logits[0, ids.index(source.vocabulary.special("<mask>"))]
    wanted = max(("max", "min"), key=lambda word: float(logits[source.vocabulary.ids(f" {word}")[0]]))
    assert model.predict([text]) == [wanted]
    pair = Seq2Seq.from_pretrained(str(tmp_path), layers=1)
    mine, given = (body.embeddings.word_embeddings.weight for body in (pair.net.encoder, whole.roberta))
    assert torch.equal(mine, given)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_trained_or_answered_says_why(tiny, tmp_path, monkeypatch):
    texts = ["int a ;", "int b ;"]
    with pytest.raises(ModelError, match="no size 'huge'; there are tiny, small, base"):
        Encoder.build(texts, "classify", size="huge")
    with pytest.raises(ModelError, match="no objective"):
        Encoder.build(texts, "guess")
    with pytest.raises(ModelError, match="2 texts and 1 labels"):
        tiny["encoder"].fit(texts, [0], Budget(steps=1))
    with pytest.raises(ModelError, match="wants pairs"):
        tiny["compare"].fit(texts, [0, 1], Budget(steps=1))
    with pytest.raises(ModelError, match="2 sources and 0 targets"):
        tiny["seq2seq"].fit(texts, [], Budget(steps=1))
    with pytest.raises(ModelError, match="family encoder, not seq2seq"):
        list(answer("defect_detection", tiny["seq2seq"], []))
    with pytest.raises(ModelError, match="no trained baseline for type_prediction"):
        model_for("type_prediction", [])
    with pytest.raises(ModelError, match=r"0 <mask>"):
        Encoder.build(texts, "cloze", candidates=["max", "min"]).predict(texts)
    with pytest.raises(ValueError, match="more than none"):
        Budget(steps=0)
    with pytest.raises(ValueError, match="steps or minutes"):
        Budget()
    with pytest.raises(TrainingError, match="no row"):
        CausalLM.build(texts).fit([], Budget(steps=1))
    broken = CausalLM.build(texts)
    broken.net.transformer.wte.weight.data[:] = math.nan
    with pytest.raises(TrainingError, match=r"the loss is nan; try a lower rate"):
        broken.fit(texts, Budget(steps=1))


def test_a_folder_that_is_no_model_is_refused(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"model\.json: no such file"):
        load_model(tmp_path)
    tiny["encoder"].save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="not the weights of this model"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="not a model's record"):
        load_model(tmp_path)


def test_a_checkpoint_of_another_training_is_not_gone_on_from(tmp_path):
    rows = miniature.rows_of("defect_detection")
    model = model_for("defect_detection", rows)
    train_model("defect_detection", model, rows, Budget(steps=1), folder=tmp_path)
    with pytest.raises(TrainingError, match="seed 0 on 12 rows, not seed 1 on 12"):
        train_model("defect_detection", model, rows, Budget(steps=2), seed=1, folder=tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing of the kind")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        train_model("defect_detection", model, rows, Budget(steps=2), folder=tmp_path)


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.mark.parametrize("name", [name for name in PAPER if TASKS[name].hub])
def test_rows_of_the_hub_are_written_as_the_official_files(name, tmp_path):
    variant = (TASKS[name].variants or (None,))[0]
    rows = miniature.rows_of(name)
    write_layout(name, "test", variant, rows, tmp_path)
    again = list(load(name, "test", variant, tmp_path))
    assert len(again) == len(rows)
    kept = {"java": "source", "cs": "target", "buggy": "source", "fixed": "target", "path": None, "project": None}
    for given, read in zip(rows, again, strict=True):
        for key, value in given.items():
            field = kept.get(key, key)
            if field in read and key != "id":
                assert str(read[field]) == str(int(value) if isinstance(value, bool) else value)
    assert write_layout(name, "test", variant, rows, tmp_path)  # once more is no harm
    assert len(list(load(name, "test", variant, tmp_path))) == len(rows)


def test_without_a_network_the_hub_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refused)
    with pytest.raises(MissingData, match="google/code_x_glue_cc_defect_detection: cannot be fetched"):
        fetch("defect_detection", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingData, match="not on the hub"):
        fetch("code_search_webquery", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="no weights of RobertaModel"):
        Encoder.from_pretrained(str(tmp_path / "nothing"), "classify")


def refused(*arguments, **named):
    raise ConnectionError("connection refused")

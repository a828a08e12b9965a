"""The three baseline families of the paper, on transformers' configurations: encoder, causal, encoder-decoder.

    model = Seq2Seq.build(sources + targets, size="tiny")
    model.fit(sources, targets, Budget(minutes=1.0))
    model.predict(["public int size ( ) { return count ; }"])

`build` starts from random weights and a vocabulary trained on the given text; `from_pretrained` takes a folder, or a
name of the hub (microsoft/codebert-base, microsoft/CodeGPT-small-py, ...). The encoder-decoder is a RoBERTa encoder
with a Transformer decoder on top, as of the paper's section 4; both halves share the table of subwords.
"""

from __future__ import annotations

import json
from pathlib import Path

from systems.codexglue.causal import CausalLM
from systems.codexglue.encoder import Encoder, EncoderNet, Objective
from systems.codexglue.seq2seq import Seq2Seq, random_pair, tied
from systems.codexglue.training import Recipe
from systems.codexglue.vocabulary import Vocabulary
from systems.codexglue.weights import SIZES, ModelError, Size, size_named

__all__ = [
    "SIZES", "CausalLM", "Encoder", "Model", "ModelError", "Objective", "Seq2Seq", "Size", "load_model", "size_named",
]  # fmt: skip

Model = Encoder | CausalLM | Seq2Seq


def load_model(folder: Path) -> Model:
    """A model that `save` wrote. Raises ModelError that names the file that is missing or is not what it should be."""
    from safetensors.torch import load_model as fill
    from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

    for name in ("model.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: no such file; expected a folder that `train` wrote")
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        configs, family = record["configs"], record["family"]
        recipe = Recipe(length=int(record["length"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'model.json'}: not a model's record: {error}") from error
    try:
        vocabulary = Vocabulary.from_file(folder / "tokenizer.json")
    except ValueError as error:
        raise ModelError(str(error)) from error
    model: Model
    if family == Encoder.family:
        body = RobertaModel(RobertaConfig.from_dict(configs["body"]), add_pooling_layer=False)
        net = EncoderNet(body, record["objective"], record["classes"])
        model = Encoder(net, vocabulary, record["objective"], recipe, record["candidates"])
    elif family == CausalLM.family:
        model = CausalLM(GPT2LMHeadModel(GPT2Config.from_dict(configs["body"])), vocabulary, recipe)
    elif family == Seq2Seq.family:
        halves = (RobertaConfig.from_dict(configs[half]) for half in ("encoder", "decoder"))
        model = Seq2Seq(tied(random_pair(*halves), vocabulary), vocabulary, recipe)
    else:
        raise ModelError(f"{folder / 'model.json'}: family {family!r}, expected encoder, causal or seq2seq")
    try:
        fill(model.net, str(folder / "model.safetensors"))
    except Exception as error:  # RuntimeError of torch, SafetensorError of a damaged file
        raise ModelError(f"{folder / 'model.safetensors'}: not the weights of this model: {error}") from error
    model.net.eval()
    return model

"""The paper's own numbers, where somebody has the weights and the data; nothing stands in for them.

LAYOUTLMV2_WEIGHTS: a folder with a fine-tuned reader (config.json with id2label, weights, vocab.txt) a claim, named
`funsd`, `funsd-large`, `cord`, `cord-large`, `sroie`. LAYOUTLMV2_DATA: a folder with `funsd`, `cord`, `sroie` in their
official layouts.
"""

import os
from pathlib import Path

import pytest

from systems.layoutlmv2.datasets import DATASETS
from systems.layoutlmv2.finetune import Reader, evaluate_reader


def official_f1(claim_name):
    weights, data = (os.environ.get(name) for name in ("LAYOUTLMV2_WEIGHTS", "LAYOUTLMV2_DATA"))
    if not weights or not data:
        pytest.skip("not run: needs LAYOUTLMV2_WEIGHTS and LAYOUTLMV2_DATA (see the docstring of this file)")
    name = claim_name.partition("-")[0]
    reader = Reader.load(Path(weights) / claim_name)
    return evaluate_reader(reader, list(DATASETS[name](Path(data) / name, "test")))[0]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("funsd", marks=pytest.mark.claim("layoutlmv2/funsd")),
        pytest.param("funsd-large", marks=pytest.mark.claim("layoutlmv2/funsd-large")),
        pytest.param("cord", marks=pytest.mark.claim("layoutlmv2/cord")),
        pytest.param("cord-large", marks=pytest.mark.claim("layoutlmv2/cord-large")),
        pytest.param("sroie", marks=pytest.mark.claim("layoutlmv2/sroie")),
    ],
)
def test_public_weights_reach_the_published_figure(claim, name):
    assert claim.holds(official_f1(name))

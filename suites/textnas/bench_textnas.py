"""The supernet beside the published one, the controller, the mini benchmark, the reader: ratios in one run."""

import itertools
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from suites.textnas import corpora
from suites.textnas.published import LENGTH, PublishedSupernet, copy_weights
from systems.textnas import PAPER, Embedding, MiniBench, Space, Supernet, TextData, TextNet, load_text
from systems.textnas.baselines import Baseline, _Recurrent
from systems.textnas.controller import Controller
from systems.textnas.minibench import regret
from systems.textnas.train import Adam
from systems.textnas.vocabulary import Batches, Vocabulary

pytestmark = pytest.mark.component("model")
SEARCH_EXAMPLES = 150 * 318_582  # the published schedule: 150 epochs over the labelled phrases of SST
ROWS, STEPS = 128, 4


@pytest.fixture(autouse=True)
def one_thread():
    corpora.one_thread()


def random_phrases(count, seed=0):
    """Made here: as many words a phrase as the Stanford treebank has, by its mean of 7."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.geometric(1 / 6.2, count), LENGTH)
    texts = tuple(" ".join(f"w{i}" for i in rng.zipf(1.3, n) % 18_000) for n in lengths)
    return TextData(texts, rng.integers(0, 5, count), tuple("01234"))


def encoded(data):
    vocabulary = Vocabulary.of(data)
    return vocabulary.encode(data, LENGTH), len(vocabulary)


def architectures(layers):
    rng = np.random.default_rng(0)
    space = Space(layers)
    return itertools.cycle([space.sample(rng) for _ in range(16)])


def our_step(net, optimizer, archs, batches):
    def run():
        seen = 0
        for batch in itertools.islice(batches, STEPS):
            F.cross_entropy(net(batch.tokens, batch.lengths, next(archs)), batch.labels).backward()
            optimizer.step(1e-3)
            seen += len(batch)
        return seen

    return run


def test_a_supernet_step(measure):
    """24 layers, 32 channels, a random architecture a step, on generated phrases: a workload of many small kernels."""
    data, words = encoded(random_phrases(ROWS * STEPS))
    net = Supernet(Space(24), words, 32, classes=5)
    batches = itertools.cycle(list(Batches(data, ROWS).epoch(0)))
    step = our_step(net, Adam(net), architectures(24), batches)
    measure(step, work=float(ROWS * STEPS), unit="sample/s")


@pytest.mark.claim("textnas/search-time")
@pytest.mark.slow
def test_a_supernet_step_beside_the_published_one(measure, data, claim):
    """Real phrases. First: with equal weights and no padding both give the same logits."""
    phrases = load_text(data("textnas/sst"), "sst5", "train", phrases=True)
    rng = np.random.default_rng(0)
    every = Vocabulary.of(phrases)
    some = every.encode(phrases.take(rng.permutation(len(phrases))[: ROWS * 40]), LENGTH)
    vectors = torch.randn(18_000, 300) * 0.1
    ours, theirs = Supernet(Space(24), vectors, 32, classes=5), PublishedSupernet(24, vectors, 32, 5)
    copy_weights(ours.eval(), theirs.eval())
    full = torch.randint(2, len(every), (3, LENGTH))
    for arch in itertools.islice(architectures(24), 4):
        expected = theirs(full, torch.ones(3, LENGTH), arch)
        assert torch.allclose(ours(full, torch.full((3,), LENGTH), arch), expected, atol=1e-4)
    ours.train()
    theirs.train()

    rows = iter(itertools.cycle(np.array_split(rng.permutation(len(some)), 40)))
    archs, optimizer = architectures(24), torch.optim.Adam(theirs.parameters(), lr=1e-3, eps=1e-3, weight_decay=2e-5)

    def published():
        seen = 0
        for _ in range(STEPS):
            part = Batches(some, ROWS).batch(next(rows))
            tokens = F.pad(part.tokens, (0, LENGTH - part.tokens.shape[1]))
            mask = (torch.arange(LENGTH) < part.lengths[:, None]).float()
            optimizer.zero_grad()
            F.cross_entropy(theirs(tokens, mask, next(archs)), part.labels).backward()
            optimizer.step()
            seen += len(part.labels)
        return seen

    batches = itertools.cycle(list(Batches(some, ROWS).epoch(0)))
    contenders = {"maat": our_step(ours, Adam(ours), architectures(24), batches), "published": published}
    speed = measure.versus(contenders, work=float(ROWS * STEPS), unit="sample/s")
    speed.over("published").at_least(4)
    if measure.full:
        rate = ROWS * STEPS / float(np.median(speed.seconds["maat"]))
        claim.report(SEARCH_EXAMPLES / rate / 3600, "hours for the published 150 epochs on one thread of this CPU")


@pytest.mark.slow
def test_controller_sampling(measure):
    """100 architectures of 24 layers, drawn together and one by one; each draw's log-probability is rescored."""
    controller = Controller(Space(24), seed=0)
    generator = torch.Generator().manual_seed(0)

    def together():
        with torch.no_grad():
            return [controller.sample(100, generator)]

    def one_by_one():
        with torch.no_grad():
            return [controller.sample(1, generator) for _ in range(100)]

    def sound(reference, result):
        for draws in (reference, result):
            archs = [arch for drawn in draws for arch in drawn.archs]
            assert len(archs) == 100
            with torch.no_grad():
                again = controller.score(archs).log_prob
            assert torch.allclose(torch.cat([drawn.log_prob for drawn in draws]), again, atol=1e-3)

    speed = measure.versus({"batched": together, "one by one": one_by_one}, work=100.0, unit="op/s", check=sound)
    speed.over("one by one").at_least(5)


@pytest.mark.slow
def test_inference_beside_a_recurrent_network(measure):
    """Sentences a second of the preset (64 channels) and of a BiLSTM with as many weights: recorded, not judged."""
    data, words = encoded(random_phrases(512))
    vectors = torch.randn(words, 256) * 0.1
    net = TextNet(PAPER, vectors, 64).eval()
    size = sum(p.numel() for name, p in net.named_parameters() if name != "encoder.embedding")
    hidden = next(h for h in range(64, 512) if 8 * h * (256 + h + 2) >= size)
    lstm = Baseline(_Recurrent(vectors, 0.0, torch.nn.LSTM, hidden), 2, False).eval()
    assert abs(lstm.count() / size - 1) < 0.05
    batches = list(Batches(data, 64).epoch(0))

    def run(model):
        with torch.no_grad():
            return sum(len(model(batch.tokens, batch.lengths)) for batch in batches)

    contenders = {"paper": lambda: run(net), "bilstm": lambda: run(lstm)}
    measure.versus(contenders, work=512.0, unit="sample/s").over("bilstm")


def test_minibench_queries(measure):
    """64 queries of evolution with each of 200 seeds, in less than 20 seconds; a plain run takes 5 seeds."""
    bench = MiniBench.load()
    seeds = 200 if measure.full else 5
    start = time.process_time()
    lost = regret(bench, "evolution", 64, seeds)
    seconds = time.process_time() - start
    measure.record("queries", seeds * 64 / seconds, "op/s")
    assert lost.shape == (seeds, 64)
    if measure.full:
        assert seconds < 20


@pytest.mark.slow
def test_reading_phrases(measure, data):
    file = data("textnas/sst") / "trees/train.txt"
    size = file.stat().st_size
    found = measure(lambda: load_text(file, "sst5", phrases=True), work=float(size), unit="B/s")
    assert len(found) > 150_000


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_a_supernet_step_on_a_gpu(measure, half):
    data, words = encoded(random_phrases(512 * STEPS))
    net = Supernet(Space(24), words, 32, classes=5).cuda()
    batches = itertools.cycle([batch.to("cuda") for batch in Batches(data, 512).epoch(0)])
    optimizer, archs = Adam(net), architectures(24)

    def run():
        for batch in itertools.islice(batches, STEPS):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                loss = F.cross_entropy(net(batch.tokens, batch.lengths, next(archs)).float(), batch.labels)
            loss.backward()
            optimizer.step(1e-3)
        torch.cuda.synchronize()

    measure(run, work=512.0 * STEPS, unit="sample/s")


@pytest.mark.slow
def test_vectors_of_a_vocabulary(measure):
    """Word vectors of 20,000 words, from the package where it is installed."""
    vocabulary = Vocabulary([f"word{i}" for i in range(20_000)])
    matrix = measure(lambda: Embedding.best().matrix(vocabulary), work=20_000.0, unit="op/s")
    assert matrix.shape[0] == 20_002

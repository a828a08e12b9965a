"""The watermark: what it survives, what it costs in quality, what it refuses, and what colluders can do."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.argus.content import join, segments
from systems.argus.errors import CapacityError
from systems.argus.watermark import accuse, embed, extract, jpeg, noise, psnr, resized, tardos_code

pytestmark = pytest.mark.component("compute")
PAYLOAD = bytes(range(16))


def photographs():
    images = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_sample_images().images
    return [image[64:448, :512] for image in images]


def generated(kind, size=256, seed=0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    if kind == "gradient":
        plane = 40 + 160 * (x + y) / (2 * size)
    elif kind == "noise":
        plane = random.normal(128, 30, (size, size))
    elif kind == "text":
        plane = np.where((y // 6 % 3 == 0) & (random.random((size, size)) < 0.4), 30, 225)
    else:  # line art
        plane = np.where(((x // 3 + y // 5) % 17 == 0) | ((x - y) % 41 < 2), 20, 235)
    return np.repeat(np.clip(plane, 0, 255).astype(np.uint8)[..., None], 3, 2)


KINDS = ["gradient", "noise", "text", "lines"]
ATTACKS = {
    "none": lambda image: image,
    "jpeg 90": lambda image: jpeg(image, 90),
    "jpeg 50": lambda image: jpeg(image, 50),
    "jpeg 30": lambda image: jpeg(image, 30),
    "noise 5": lambda image: noise(image, 5.0),
    "half": lambda image: resized(image, 0.5),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("number", [0, 1])
def test_payload_survives_in_photographs(number, attack):
    """256 x 256 segments at 40 dB or more."""
    image = photographs()[number][:256, :256]
    marked = embed(image, PAYLOAD)
    assert psnr(image, marked) >= 40
    assert extract(ATTACKS[attack](marked)).payload == PAYLOAD


@pytest.mark.parametrize("attack", ["none", "jpeg 90", "jpeg 50", "noise 5"])
@pytest.mark.parametrize("kind", KINDS)
def test_payload_survives_in_generated_pictures(kind, attack):
    marked = embed(generated(kind), PAYLOAD)
    assert extract(ATTACKS[attack](marked)).payload == PAYLOAD


@settings(max_examples=20, deadline=None)
@given(
    payload=st.binary(min_size=16, max_size=16),
    height=st.integers(256, 330),
    width=st.integers(256, 330),
    seed=st.integers(0, 5),
)
def test_any_payload_comes_back_from_any_size(payload, height, width, seed):
    image = generated("noise", 336, seed)[:height, :width]
    before = image.copy()
    marked = embed(image, payload)
    assert np.array_equal(image, before)
    assert marked.shape == image.shape
    assert extract(marked).payload == payload
    assert psnr(image, marked) >= 40


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_image_carries_its_payload_or_is_refused(level):
    """Clipping takes half of every change away; what is returned always extracts."""
    image = np.full((256, 256, 3), level, np.uint8)
    assert extract(embed(image, PAYLOAD)).payload == PAYLOAD
    with pytest.raises(CapacityError, match="flat or clipped"):
        embed(image, PAYLOAD, step=0.8)  # below what whole grey levels can hold
    assert (image == level).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((255, 256, 3), np.uint8), "at least 256"),
        (np.zeros((256, 256), np.uint8), "expected uint8"),
        (np.zeros((256, 256, 4), np.uint8), "expected uint8"),
        (np.zeros((256, 256, 3), np.float32), "expected uint8"),
        ("picture", "expected uint8"),
    ],
)
def test_what_is_no_image_is_refused(image, words):
    for function in (lambda: embed(image, PAYLOAD), lambda: extract(image)):
        with pytest.raises(CapacityError, match=words):
            function()
    with pytest.raises(ValueError, match="16"):
        embed(generated("noise"), b"short")


def test_an_unmarked_image_has_no_payload():
    found = [extract(image[:256, :256]) for image in photographs()]
    found += [extract(generated(kind, seed=seed)) for kind in KINDS for seed in range(3)]
    assert all(one.payload is None for one in found)
    assert all(0 <= one.confidence <= 1 for one in found)


def test_collusion_never_names_an_innocent():
    """Averages, extremes and mosaics of 2 to 4 copies: the payload is one of theirs, or none."""
    image = photographs()[0][:256, :256]
    payloads = [bytes([17 * n + 1]) * 16 for n in range(4)]
    copies = [embed(image, payload) for payload in payloads]
    for number in (2, 3, 4):
        for chosen in itertools.combinations(range(4), number):
            stack = np.stack([copies[n] for n in chosen]).astype(np.float64)
            mosaic = copies[chosen[0]].copy()
            for n, copy in enumerate(copies[c] for c in chosen):
                mosaic[64 * n : 64 * (n + 1)] = copy[64 * n : 64 * (n + 1)]
            attacks = {
                "mean": stack.mean(0), "least": stack.min(0), "most": stack.max(0), "mosaic": mosaic,
                "middle": np.median(stack, 0),
            }  # fmt: skip
            for name, mixed in attacks.items():
                found = extract(np.rint(mixed).astype(np.uint8)).payload
                assert found is None or found in [payloads[n] for n in chosen], (name, chosen)


@pytest.mark.parametrize("colluders", [1, 2, 3])
def test_tardos_finds_a_colluder(colluders):
    """Marked bits are taken at random among the colluders' where they differ; 0 innocents of 100."""
    found = 0
    games = 20
    for seed in range(games):
        code, bias = tardos_code(100, 3, 1e-3, seed)
        random = np.random.default_rng(1000 + seed)
        who = random.choice(100, colluders, replace=False)
        copy = code[who, :][random.integers(0, colluders, code.shape[1]), np.arange(code.shape[1])]
        accused, scores = accuse(code, bias, copy, 3, 1e-3)
        assert set(accused) <= set(who)
        assert scores.shape == (100,)
        found += bool(len(accused))
    assert found >= 0.95 * games


# ---------------------------------------------------------------------------------------------------- segments


@given(number=st.integers(1, 6), height=st.integers(520, 700), width=st.integers(1536, 1700))
@settings(max_examples=25, deadline=None)
def test_segments_join_to_the_image(number, height, width):
    image = (np.arange(height)[:, None, None] * 3 + np.arange(width)[:, None] + np.arange(3)).astype(np.uint8)
    parts = segments(image, number)
    assert len(parts) == number
    assert np.array_equal(join(parts), image)


def test_segments_that_are_too_small_are_refused():
    with pytest.raises(CapacityError, match="512 x 512 in all"):
        segments(np.zeros((511, 512, 3), np.uint8), 4)

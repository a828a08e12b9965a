"""Argus as a workload: curve arithmetic and sealing, image transforms, contract calls; the watermark beside a peer."""

import numpy as np
import pytest

from systems.argus.tokens import VersionTree, keccak, new_payloads
from systems.argus.transfer import OwnerKey, choose, open_bundle, seal
from systems.argus.watermark import embed, extract, jpeg, psnr

pytestmark = pytest.mark.component("compute")
LICENCE = keccak(b"benchmark")
PAYLOAD = bytes(range(16))


def picture(side):
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    plane = 128 + 60 * np.sin(9 * x + 4 * y) + random.normal(0, 12, (side, side))
    return np.repeat(np.clip(plane, 0, 255).astype(np.uint8)[..., None], 3, 2)


def test_transfer(measure):
    """A choice of one of 1,024 versions proved, checked, sealed and opened: 5 segments of 4 variants, 64 KiB each."""
    key = OwnerKey.of(12345)
    variants = [[bytes([16 * j + v]) * 65536 for v in range(4)] for j in range(5)]

    def transfer():
        choice = choose(key.point, LICENCE, 5, 4)
        return choice, open_bundle(key.point, LICENCE, choice, seal(key, LICENCE, choice.offer, variants))

    choice, opened = measure(transfer, work=float(20 * 65536), unit="B/s")
    assert opened == tuple(variants[j][digit - 1] for j, digit in enumerate(choice.opening.chosen))


def test_tree(measure):
    """Anchors and tree of 1,024 versions over 16 periods."""
    payloads = new_payloads(5, 4)
    tree = measure(lambda: VersionTree.of(LICENCE, payloads, 16), work=1024.0, unit="op/s")
    assert len(set(tree.anchors)) == 1024


@pytest.mark.parametrize("side", [256, 512])
def test_watermark(measure, side):
    image = picture(side)
    marked = measure(lambda: embed(image, PAYLOAD), work=float(image.size), unit="B/s", metric="embed")
    found = measure(lambda: extract(marked), work=float(image.size), unit="B/s", metric="extract")
    assert found.payload == PAYLOAD


def test_calls(measure):
    """Commitments on pyrevm: hashing, storage and the machine that runs them."""
    pytest.importorskip("pyrevm", reason="pyrevm is not installed: pip install 'maat[test]'")
    from systems.argus.court import Settings, deploy
    from systems.evm import RevmChain

    chain = RevmChain()
    court = deploy(chain, OwnerKey.of(7), Settings(segments=3))
    number = iter(range(10**9))

    def commits():
        for _ in range(200):
            name = keccak(next(number).to_bytes(8, "big"))
            chain.send(court.contract, "commit", name, sender=chain.accounts[1], value=10**15)

    measure(commits, work=200.0, unit="op/s")
    assert court.balance > 0


@pytest.mark.slow
def test_watermark_beside_blind_watermark(measure):
    """Embedding as many bits into the same photograph; quality and errors are recorded, speed is compared."""
    peer = pytest.importorskip("blind_watermark", reason="not installed: pip install --no-deps blind-watermark")
    photographs = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    image = np.ascontiguousarray(photographs.load_sample_images().images[0][:400, :600])
    bits = np.unpackbits(np.frombuffer(bytes(range(32)), np.uint8)).astype(bool)
    peer.bw_notes.close()

    def theirs():
        mark = peer.WaterMark(password_img=1, password_wm=1)
        mark.read_img(img=image[..., ::-1].astype(np.float32))
        mark.read_wm(bits, mode="bit")
        return np.clip(np.rint(mark.embed()), 0, 255).astype(np.uint8)[..., ::-1]

    speed = measure.versus(
        {"argus": lambda: embed(image, PAYLOAD), "blind-watermark": theirs},
        check=lambda ours, other: ours.shape == other.shape,
    )
    for name, marked in (("argus", embed(image, PAYLOAD)), ("blind-watermark", theirs())):
        measure.record(f"psnr {name}", psnr(image, marked), "1", better="higher")
    assert extract(jpeg(embed(image, PAYLOAD), 30)).payload == PAYLOAD
    speed.over("blind-watermark").at_least(8)

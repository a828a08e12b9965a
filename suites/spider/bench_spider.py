"""Spider as a workload: gathering, small tiles and index construction, whose cost no dense benchmark shows."""

import pytest
import torch

from systems.spider import cpu, detect, matmul, plan
from systems.spider.patterns import block_mask

pytestmark = pytest.mark.component("model")


@pytest.fixture(autouse=True)
def _native():
    if not cpu.available():
        pytest.skip("Spider's workload is its native kernels: there is no C compiler")


def operands(n, tile, sparsity):
    generator = torch.Generator().manual_seed(0)
    mask = block_mask(n, n, (min(n, tile[0]), min(n, tile[1])), sparsity)
    return torch.where(mask, torch.randn(n, n, generator=generator), 0), torch.randn(n, n, generator=generator)


def test_product(measure):
    """A fixed rule, so that the machine is judged and not its tile table."""
    a, b = operands(1024, (8, 1), 0.9)
    chosen = plan("mk,kn->mn", a, b).forced("k 8x1", "native")
    y = measure(lambda: matmul(a, b, plan=chosen), work=2.0 * int((a != 0).sum()) * b.shape[1], unit="FLOP/s")
    torch.testing.assert_close(y, a @ b, rtol=1e-4, atol=1e-3)


def test_detection(measure):
    a, _ = operands(2048, (8, 1), 0.9)
    index = measure(lambda: detect(a, (8, 1), pack=True), work=4.0 * a.numel(), unit="B/s")
    assert torch.equal(index.to_mask(), a != 0)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("tile", [(32, 1), (1, 32), (32, 32), (1, 1)], ids=lambda tile: f"{tile[0]}x{tile[1]}")
@pytest.mark.filterwarnings("ignore:Sparse")
def test_grid(measure, tile, sparsity):
    a, b = operands(1536 if measure.full else 256, tile, sparsity)
    speed = measure.versus(
        {
            "spider": lambda: matmul(a, b),
            "dense": lambda: torch.mm(a, b),
            "csr": lambda: torch.sparse.mm(a.to_sparse_csr(), b),
        },
        check=lambda x, y: torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-3),
    )
    speed.over(speed.strongest())

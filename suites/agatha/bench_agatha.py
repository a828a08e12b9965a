"""XCE: one right digest and a latency per network, and the ratios to native execution and to a virtual machine."""

import pytest
import torch

from suites.agatha.contenders import contest, parting
from systems.agatha import models, xce

pytestmark = pytest.mark.component("model")

NETWORKS = list(models.MODELS)


@pytest.mark.parametrize("network", [pytest.param("mobilenet", marks=pytest.mark.slow), "resnet50"])
def test_xce(measure, network):
    """The gate's: the int8 digest has one right value on every machine; the latency is the machine's own.

    Where the machine's two ways of computing it give two digests, the evidence names operator and element.
    """
    it = contest(network)
    run = it.executor("int8")
    found = xce.digest(run())
    measure.digest("digest", found)
    if found != xce.digest(xce.run(it.int8, it.codes, "carrier")):
        measure.evidence(parting(it.int8, *(xce.trace(it.int8, it.codes, way) for way in ("auto", "carrier"))))
    measure(run, metric="latency")


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_xce_of_both_profiles(measure, network):
    it = contest(network)
    for profile in ("int8", "ieee32"):
        run = it.executor(profile)
        measure.digest(f"digest_{profile}", xce.digest(run()))
        measure(run, metric=f"latency_{profile}")


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_beside_native(measure, network):
    """Both profiles beside torch float32, eager and compiled, and beside torch's own int8 calls."""
    it = contest(network)
    model, x = it.model.to(memory_format=torch.channels_last), it.image.to(memory_format=torch.channels_last)
    contenders = {"ieee32": it.executor("ieee32"), "int8": it.executor("int8"), "native": it.native()}
    contenders |= {"bare_int8": it.bare()}
    with torch.no_grad():
        frozen = torch.compile(model)
        frozen(x)

        def compiled():
            with torch.no_grad():
                return frozen(x)

        contenders["compiled"] = compiled
        speed = measure.versus(contenders, check=it.agree)
    speed.over("native").at_least(1 / 1.03)
    speed.over("compiled").at_least(1 / 1.03)
    speed.over("bare_int8", of="int8").at_least(1 / 1.03)
    speed.over("native", of="int8").at_least(3)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_trace(measure, network):
    it = contest(network)
    measure(lambda: xce.trace(it.int8, it.codes), metric="time")

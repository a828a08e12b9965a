"""A plan beside the model it came from: loss, every gradient, and the parameters after three AdamW steps."""

import copy
import functools

import torch

from systems.superscaler import InMemory
from systems.superscaler.runtime import Runner

ADAMW = functools.partial(torch.optim.AdamW, lr=1e-2)
STEPS = 3


def values_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def serial(sample, steps=STEPS):
    """(loss, gradients) of each step and the parameters at the end, by torch alone."""
    model = copy.deepcopy(sample.model)
    optimizer = ADAMW(model.parameters())
    steps_made = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*sample.batch)
        loss.backward()
        steps_made.append(
            (loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
        optimizer.step()
    return steps_made, {n: p.detach() for n, p in model.named_parameters()}


def in_memory_equals(plan, sample, reference, rtol=1e-9, atol=1e-10):
    """Run a plan on simulated ranks; raise where it differs from `serial`."""
    steps, after = reference
    ranks = InMemory(plan, values_of(sample.model), ADAMW)
    for loss, grads in steps:
        for own in ranks.step(sample.batch):
            torch.testing.assert_close(own, loss, rtol=rtol, atol=atol)
        found = ranks.parameter_gradients()
        for name, grad in grads.items():
            torch.testing.assert_close(found[name], grad, rtol=rtol, atol=atol, msg=lambda t, n=name: f"{n}: {t}")
    if after:
        equal_parameters(ranks.parameters(), after, rtol, atol)


def equal_parameters(found, after, rtol=1e-9, atol=1e-9):
    """AdamW divides by the root of a squared gradient, so its last digits are noise where that is 0: hence atol."""
    for name, value in found.items():
        torch.testing.assert_close(
            value, after[name], rtol=rtol, atol=max(atol, 1e-7), msg=lambda t, n=name: f"{n}: {t}"
        )


def run_all(plans, samples):
    """In a rank: losses and final parameters of several plans; the ranks of one launch serve them all."""
    found = {}
    for name, (plan, model) in plans.items():
        sample = samples[model]
        runner = Runner(plan, copy.deepcopy(sample.model), ADAMW)
        losses = [runner.step(sample.batch) for _ in range(STEPS)]
        found[name] = {"losses": torch.stack(losses), "after": runner.state_dict()}
    return found

"""Weights are run-time arguments: one compiled graph serves other instances, and weights that change."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from rewrite.backend import refold, torch_rewrite
from rewrite.dynamo import folds
from tests.backend.compiling import Log, compiled
from tests.backend.models import EACH, MODELS, distance, images


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_one_graph_follows_every_instance_and_every_change(name):
    model, other = MODELS[name](0), MODELS[name](1)
    x = images(name, 2, seed=5)
    log = Log()
    first, second = compiled(model), compiled(other)
    for _ in range(2):
        assert distance(model, first(x), x) < 8
        assert distance(other, second(x), x) < 8

    def check():
        assert distance(model, first(x), x) < 8
        assert distance(other, second(x), x) < 8

    parameters = dict(model.named_parameters())
    victim = next(key for key, value in parameters.items() if value.dim() >= 3)
    owner = model.get_submodule(victim.rpartition(".")[0])
    owner.weight = nn.Parameter(1.5 * owner.weight + 0.01)  # another object
    check()
    owner.weight.data = owner.weight.data.flip(0).clone()  # the same object over other memory
    check()
    owner.weight.data.mul_(-0.7)  # the same memory, and no version counts it
    check()
    for parameter in model.parameters():
        parameter.mul_(1.01)
    check()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(first(x), second(x))
    model.load_state_dict(MODELS[name](2).state_dict(), assign=True)
    check()
    assert len(log.graphs) == 1  # Dynamo compiled once, so every change was followed by folding alone
    assert "fold-constants" in log.rewrites()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused sgd", "fused adamw"])
def test_a_step_between_two_calls_is_noticed(optimizer):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)).eval()
    kind = torch.optim.AdamW if "adamw" in optimizer else torch.optim.SGD
    steps = kind(model.parameters(), lr=0.1, fused="fused" in optimizer)
    x = torch.randn(2, 3, 12, 12)
    fast, log = compiled(model), Log()
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        steps.zero_grad()
        model(x).square().mean().backward()
        steps.step()
    assert "fold-batch-norm-after" in log.rewrites()


def test_statistics_that_training_moves_are_noticed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    x = torch.randn(2, 3, 12, 12)
    fast, log = compiled(model), Log()
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(fast.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
            model.train()(x)
    assert "fold-batch-norm-after" in log.rewrites()


@torch.no_grad()
def test_blocks_compiled_one_by_one_share_a_graph_and_keep_their_weights():
    model = MODELS["repvgg_a0"]()
    whole = copy.deepcopy(model)
    log = Log()
    blocks = list(model.stages[2])[1:]  # equal shapes
    for block in blocks:
        block.compile(backend=torch_rewrite, options={"lower": "eager"})
    x = images("repvgg_a0", 2)
    torch.testing.assert_close(model(x), whole(x), rtol=1e-3, atol=1e-4)
    assert len(blocks) > 10
    assert len(log.rewritten()) <= 2
    for original, block in zip(whole.stages[2][1:], blocks, strict=True):
        y = torch.randn(2, block.conv_kxk.conv.in_channels, 8, 8)
        torch.testing.assert_close(block(y), original(y), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folds_die_with_their_model():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()

    seen = []
    original = folds.Folds.__init__

    def remember(self, *args):
        original(self, *args)
        seen.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds.Folds, "__init__", remember)
        first, second = make(), make()
        for model in (first, second):
            compiled(model)(torch.randn(1, 3, 8, 8))
    (held,) = seen
    assert len(held) == 2
    del second, model
    gc.collect()
    assert len(held) == 1


@torch.no_grad()
def test_a_model_is_let_go():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    fast = compiled(model)
    fast(torch.randn(1, 3, 8, 8))
    held = [weakref.ref(parameter) for parameter in model.parameters()]
    del model, fast
    torch._dynamo.reset()
    gc.collect()
    assert not any(parameter() is not None for parameter in held)


@torch.no_grad()
def test_tensors_can_be_swapped():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    fast, x, log = compiled(model), torch.randn(2, 3, 8, 8), Log()
    for _ in range(2):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.randn(4, 3, 3, 3)))
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert "fold-constants" in log.rewrites()


def test_weights_of_the_inference_mode():
    log = Log()
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        fast, x = compiled(model), torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        model[0].weight.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert "fold-constants" in log.rewrites()


@torch.no_grad()
@pytest.mark.parametrize("way", ["in place", "fused", "refold"])
def test_changes_that_no_watched_byte_shows(way):
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)).eval()
    fast, x, log = compiled(model), torch.randn(2, 16, 8, 8), Log()
    weight = model[0].weight
    before = fast(x)
    change = torch.zeros_like(weight)
    change[3, 5] = 0.01  # a few elements of many, none of them extreme
    if way == "in place":
        weight.add_(change)
    elif way == "fused":
        weight.grad = -change
        torch.optim.SGD([weight], lr=1.0, fused=True).step()
    else:
        weight.data.add_(change)
        refold()
    assert not torch.equal(fast(x), before)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert "fold-constants" in log.rewrites()


@torch.no_grad()
def test_two_models_in_one_function_keep_equal_names_apart():
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    second = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for model in (first, second):
        nn.init.normal_(model[1].running_mean)

    def both(x):
        return first(x) - second(x)

    x, log = torch.randn(2, 3, 8, 8), Log()
    torch.testing.assert_close(compiled(both)(x), both(x), rtol=1e-4, atol=1e-5)
    assert "merge-branches" in log.rewrites()

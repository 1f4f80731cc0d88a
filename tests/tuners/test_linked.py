"""The layers of SAM-COBOT against its formulas, written with loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redfree.tuners.linked import AdaptedMlp, Link, LinkedAdapter, LinkedLowRank, Relation
from redfree.tuners.low_rank import TunedQkv

LAYERS, WIDTH = 6, 12
RANKS = pytest.mark.parametrize("rank", [4, 8])


def shaken(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double().requires_grad_(False)


def linked(link, layer, hidden):
    """H(CP * z + gamma * z), of one vector, number by number."""
    coefficients, matrix, rank = link.relation.coefficients, link.relation.matrix, len(hidden)
    scaled = torch.zeros(rank, dtype=hidden.dtype)
    for number in range(rank):
        for other in range(LAYERS):
            scaled[number] += coefficients[number, other] * matrix[other, layer] * hidden[number]
        scaled[number] += link.gamma[number] * hidden[number]
    return link.head(scaled)


@RANKS
@pytest.mark.parametrize("layer", [0, 5])
def test_a_link_scales_by_the_shared_and_by_its_own_coefficients(rank, layer):
    link, hidden = shaken(Link(Relation(rank, LAYERS), layer)), torch.randn(3, rank, dtype=torch.float64)
    expected = torch.stack([linked(link, layer, vector) for vector in hidden])
    torch.testing.assert_close(link(hidden), expected)
    torch.testing.assert_close(torch.stack([link.matrix() @ vector for vector in hidden]), expected)


@RANKS
def test_at_the_start_every_scale_is_two(rank):
    link, hidden = Link(Relation(rank, LAYERS), 2), torch.randn(rank)
    torch.testing.assert_close(link(hidden), link.head(2 * hidden))


def linked_qkv(base, relation, first):
    layers = iter((first, first + 1))
    return TunedQkv(base, lambda layer, rows: LinkedLowRank(layer, rows, Link(relation, next(layers))))


@RANKS
def test_an_update_of_a_projection(rank):
    projection = shaken(linked_qkv(nn.Linear(WIDTH, 3 * 8), Relation(rank, LAYERS), 2))
    base, tokens = projection.layer, torch.randn(2, 3, 5, WIDTH, dtype=torch.float64)
    expected = base(tokens)
    for start, layer, update in ((0, 2, projection.q), (16, 3, projection.v)):
        for place in ((a, b, c) for a in range(2) for b in range(3) for c in range(5)):
            hidden = linked(update.link, layer, update.A @ tokens[place])
            expected[place][start : start + 8] += update.B @ hidden
    torch.testing.assert_close(projection(tokens), expected)
    # What multiplies by the weight itself sees the same update.
    torch.testing.assert_close(F.linear(tokens, projection.weight, base.bias), expected)


def test_an_update_starts_at_zero():
    base = nn.Linear(WIDTH, 24)
    projection, tokens = linked_qkv(base, Relation(4, LAYERS), 0), torch.randn(1, 4, 4, WIDTH)
    assert torch.equal(projection(tokens), base(tokens))
    assert torch.equal(projection.weight, base.weight)
    # kaiming_uniform with a = sqrt(5): within 1 / sqrt(inputs).
    assert 0.8 * WIDTH**-0.5 < projection.q.A.abs().max() <= WIDTH**-0.5


@RANKS
def test_an_adapter_beside_an_mlp(rank):
    mlp, layer = shaken(nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))).eval(), 4
    adapter = shaken(LinkedAdapter(Link(Relation(rank, LAYERS), layer), WIDTH))
    adapted, tokens = AdaptedMlp(mlp, adapter), torch.randn(3, WIDTH, dtype=torch.float64)
    expected = mlp(tokens)
    for row, token in enumerate(tokens):
        normal = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
        normal = normal * adapter.norm.weight + adapter.norm.bias
        hidden = linked(adapter.link, layer, adapter.down.weight @ normal + adapter.down.bias)
        expected[row] += adapter.up.weight @ hidden.clamp(min=0) + adapter.up.bias
    torch.testing.assert_close(adapted(tokens), expected)


def test_an_adapter_starts_at_zero():
    mlp = nn.Linear(WIDTH, WIDTH).eval()
    adapted, tokens = AdaptedMlp(mlp, LinkedAdapter(Link(Relation(16, LAYERS), 0), WIDTH)), torch.randn(5, WIDTH)
    assert torch.equal(adapted(tokens), mlp(tokens))
    assert adapted.adapter.down.weight.any()
    assert not adapted.adapter.down.bias.any()


def test_an_adapter_takes_the_mode_of_the_mlp_that_it_joins():
    """A fresh module is in training mode, so that dropout would be active in a model that is evaluated."""
    adapter = LinkedAdapter(Link(Relation(16, LAYERS), 0), WIDTH)
    assert adapter.training
    adapted = AdaptedMlp(nn.Linear(WIDTH, WIDTH).eval(), adapter)
    assert not any(module.training for module in adapted.modules())


def test_dropout_is_active_in_training_only():
    adapter = LinkedAdapter(Link(Relation(400, LAYERS), 0), WIDTH)
    shaken(adapter)
    tokens, seen = torch.randn(WIDTH, dtype=torch.float64), []
    adapter.up.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    adapter.eval()(tokens)
    adapter.train()(tokens)
    calm, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], calm[kept] / 0.9)
    assert 0.02 < 1 - kept.sum() / (calm != 0).sum() < 0.2

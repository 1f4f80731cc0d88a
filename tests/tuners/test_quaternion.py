import pytest
import torch

from redfree.tuners.quaternion import QuaternionLinear

# Of units 1, i, j, k: which unit, and with which sign, a product of two is (Hamilton, 1843).
PRODUCTS = {
    (0, 0): (0, 1), (0, 1): (1, 1), (0, 2): (2, 1), (0, 3): (3, 1),
    (1, 0): (1, 1), (1, 1): (0, -1), (1, 2): (3, 1), (1, 3): (2, -1),
    (2, 0): (2, 1), (2, 1): (3, -1), (2, 2): (0, -1), (2, 3): (1, 1),
    (3, 0): (3, 1), (3, 1): (2, 1), (3, 2): (1, -1), (3, 3): (0, -1),
}  # fmt: skip


def by_hand(weight, vector):
    """Each output quaternion as the sum of products weight * input, unit by unit."""
    side = weight.shape[1]
    parts, output = vector.reshape(4, side), torch.zeros(4, side, dtype=vector.dtype)
    for (left, right), (unit, sign) in PRODUCTS.items():
        for source in range(side):
            for target in range(side):
                output[unit, target] += sign * weight[left, source, target] * parts[right, source]
    return output.flatten()


@pytest.mark.parametrize("width", [4, 8, 16])
def test_products_of_quaternions(width):
    layer = QuaternionLinear(width).double()
    torch.nn.init.normal_(layer.weight)
    vectors = torch.randn(2, 3, width, dtype=torch.float64)
    expected = torch.stack([torch.stack([by_hand(layer.weight, v) for v in row]) for row in vectors])
    torch.testing.assert_close(layer(vectors), expected)


def test_one_quaternion_turns_and_stretches():
    layer = QuaternionLinear(4)
    torch.nn.init.normal_(layer.weight)
    matrix = layer.matrix()
    torch.testing.assert_close(matrix @ matrix.T, layer.weight.square().sum() * torch.eye(4))


@pytest.mark.parametrize("width", [4, 16])
def test_start_and_size(width):
    weight = QuaternionLinear(width).weight
    assert weight.numel() == width**2 // 4
    assert not weight[0].any()
    assert (weight[1:] > 0).all()
    assert (weight[1:] < 1).all()


def test_every_weight_has_a_gradient():
    layer = QuaternionLinear(8)
    (layer(torch.randn(5, 8)) * torch.randn(5, 8)).sum().backward()
    assert layer.weight.grad.all()

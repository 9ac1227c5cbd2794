import pytest
import torch

from engine.kit.masks import nm_mask, straight_through, top_k_mask


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 8), (1, 8)])
def test_every_group_keeps_its_largest(n, m):
    weight = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight, n, m)
    for row, kept in zip(weight, mask, strict=True):
        for start in range(0, 16, m):
            order = sorted(range(m), key=lambda i, row=row, start=start: -abs(float(row[start + i])))
            assert {i for i in range(m) if kept[start + i]} == set(order[:n])


def test_a_kernels_groups_run_along_its_input_channels():
    kernel = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(kernel, 1, 4)
    assert mask.shape == kernel.shape
    for out in range(3):
        for y in range(2):
            for x in range(2):
                assert torch.equal(mask[out, :, y, x], nm_mask(kernel[out, :, y, x].view(1, 8), 1, 4)[0])
    assert not torch.equal(mask, nm_mask(kernel.permute(0, 2, 3, 1).reshape(3, 32), 1, 4).view_as(kernel))


def test_equal_weights_keep_exactly_n():
    assert nm_mask(torch.zeros(2, 8), 3, 8).sum(1).tolist() == [3, 3]
    assert top_k_mask(torch.zeros(5, 2), 4).sum() == 4


def test_top_k_is_over_the_whole_tensor():
    score = torch.tensor([[1.0, 9.0], [8.0, 2.0], [3.0, 7.0]])
    assert top_k_mask(score, 3).tolist() == [[False, True], [True, False], [False, True]]
    assert not top_k_mask(score, 0).any()
    assert top_k_mask(score, 6).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="10 inputs of a weight are not a multiple of 4"):
        nm_mask(torch.zeros(2, 10), 1, 4)
    with pytest.raises(ValueError, match="5:4 keeps no pattern"):
        nm_mask(torch.zeros(2, 8), 5, 4)
    with pytest.raises(ValueError, match="cannot be kept"):
        top_k_mask(torch.zeros(3), 4)


def test_straight_through_has_the_value_exactly_and_the_gradient_of_the_weight():
    weight = torch.tensor([1e-8, 0.3, -7.1e9], requires_grad=True)
    value = weight.detach() * torch.tensor([0.0, 1.0, 0.0])
    passed = straight_through(value, weight)
    assert torch.equal(passed, value)
    passed.backward(torch.tensor([2.0, 3.0, 4.0]))
    assert weight.grad.tolist() == [2.0, 3.0, 4.0]

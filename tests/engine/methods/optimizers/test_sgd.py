"""SGD is torch's, with the fast kernel where it fits and a clear refusal where it makes no sense."""

import pytest
import torch

from engine.methods.optimizers.sgd import SGD


def _steps(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_follows_the_written_formula(nesterov):
    start, gradients = torch.randn(5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    w, m = start.clone(), None
    for g in gradients:
        g = g + 0.1 * w
        m = g.clone() if m is None else 0.8 * m + g
        w = w - 0.05 * (g + 0.8 * m if nesterov else m)
    p = torch.nn.Parameter(start.clone())
    got = _steps(SGD([p], 0.05, momentum=0.8, weight_decay=0.1, nesterov=nesterov), p, gradients)
    torch.testing.assert_close(got, w, rtol=1e-12, atol=1e-12)


def test_it_takes_the_fused_kernel_for_real_parameters_and_an_iterator_of_them():
    layer = torch.nn.Linear(3, 2)
    groups = SGD(iter([{"params": layer.parameters(), "lr": 0.5}])).param_groups
    assert groups[0]["fused"] is True and groups[0]["lr"] == 0.5 and len(groups[0]["params"]) == 2
    assert not SGD([torch.zeros(2, dtype=torch.complex64, requires_grad=True)]).param_groups[0]["fused"]
    assert not SGD([torch.zeros(2, device="meta", requires_grad=True)]).param_groups[0]["fused"]


def test_nesterov_without_momentum_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="momentum above 0"):
        SGD([torch.zeros(1, requires_grad=True)], momentum=0.0, nesterov=True)

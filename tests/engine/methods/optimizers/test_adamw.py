"""AdamW is torch's, with the fast kernel where it fits."""

import torch

from engine.methods.optimizers.adamw import AdamW


def test_it_follows_the_written_formula():
    start, gradients = torch.randn(5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    w, m, v = start.clone(), torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for t, g in enumerate(gradients, 1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        w = w - 0.01 * 0.1 * w - 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-6)
    p = torch.nn.Parameter(start.clone())
    optimizer = AdamW([p], 0.01, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.1)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)


def test_it_takes_the_fused_kernel_for_real_parameters_by_name_or_in_groups():
    layer = torch.nn.Linear(3, 2)
    assert AdamW(layer.named_parameters()).param_groups[0]["fused"] is True
    assert AdamW([{"params": layer.weight}, {"params": [layer.bias]}]).param_groups[1]["fused"] is True
    assert not AdamW([torch.zeros(2, device="meta", requires_grad=True)]).param_groups[0]["fused"]

import torch

from engine.methods.losses.half_squared_error import HalfSquaredError
from engine.parts import Batch


def test_it_is_half_the_squared_distance_and_its_curvature_is_one():
    target = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    output = torch.tensor([[4.0, 6.0], [0.0, 1.0]], dtype=torch.float64)
    batch = Batch({"x": torch.zeros(2, 1)}, target, torch.arange(2))
    loss = HalfSquaredError()
    assert loss(output, batch)["task"].tolist() == [12.5, 2.0]
    flat = torch.autograd.functional.hessian(lambda out: loss(out, batch)["task"].sum(), output).reshape(4, 4)
    assert torch.equal(flat, torch.eye(4, dtype=torch.float64))

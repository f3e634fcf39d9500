"""Linear layers of torch by oneDNN, whose float32 kernels are faster than MKL's on processors that are not Intel's."""

import torch
from torch import nn


class OneDNNLinear(nn.Module):
    """A frozen linear layer with packed weights."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class _Product(torch.autograd.Function):
    """x W^T + b and its gradients by oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        product = torch.ops.mkldnn._linear_pointwise
        of_x = product(gradient, weight.T.contiguous(), None, "none", [], "")
        of_weight = product(rows.T.contiguous(), x.reshape(-1, x.shape[-1]).T.contiguous(), None, "none", [], "")
        return of_x, of_weight, rows.sum(0)


class LearningLinear(nn.Module):
    """A linear layer that learns."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self.weight, self.bias)


def use_onednn(model: nn.Module, layer: type[nn.Module] = OneDNNLinear) -> None:
    """Puts `layer` in the place of all linear layers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, layer(child))

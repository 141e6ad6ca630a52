"""S2MoE's second path (arXiv 2503.23007): the FFN also learns from a noised copy of its input.

y = g(x) f(x) + (1 - g(x)) f(noised x), in training only. Noise is shaped by each token's own mean
and deviation over the hidden axis, never by other positions, samples or padding: statistics over
the sequence would let a token see its future.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

OPEN = 5.0  # sigmoid(5) = 0.993: training starts on the clean path


class NormalAugmenter(nn.Module):
    """Noise a token within its own distribution: mean + std * ((1 + a e1) * normed + b e2).

    a and b are learned scales, e1 and e2 standard normal per element; a = b = 0 gives x back. The
    added term is N(mean, (b std)^2) as in S2MoE.
    """

    def __init__(self, alpha_scale: float = 1.0, beta_scale: float = 1.0, eps: float = 1e-6):
        super().__init__()
        self.alpha_scale = nn.Parameter(torch.tensor(float(alpha_scale)))
        self.beta_scale = nn.Parameter(torch.tensor(float(beta_scale)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Noised copy of x [..., _H], drawn under torch's global generator."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.mean(-1, keepdim=True)
        std = (wide.var(-1, correction=0, keepdim=True) + self.eps).sqrt()
        normed = (wide - mean) / std
        gain = 1 + self.alpha_scale * torch.randn_like(normed)
        noised = gain * normed + self.beta_scale * torch.randn_like(normed)
        return (mean + std * noised).to(x.dtype)


class PathGate(nn.Sequential):
    """g, the clean path's share per token: _H to _H/4 to 1, at first nearly constant and open."""

    def __init__(self, hidden: int):
        inner = max(hidden // 4, 1)
        last = nn.Linear(inner, 1, device="cpu", dtype=torch.float32)
        nn.init.xavier_uniform_(last.weight, gain=0.01)
        nn.init.constant_(last.bias, OPEN)
        first = nn.Linear(hidden, inner, device="cpu", dtype=torch.float32)
        super().__init__(first, nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """[..., _H] to [..., 1], from 0 to 1."""
        return super().forward(x.to(next(self.parameters()).dtype)).sigmoid()

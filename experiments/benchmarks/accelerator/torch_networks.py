"""The networks of `networks` in PyTorch, for a comparison of speed: same layers, widths and parameter counts.

DiT and EDM2 are written out here; the U-Net is diffusers' UNet2DModel. A network is called as `net(x, t, label)` with x
(B, C, H, W), t in [0, 1] of shape (B,) and integer labels (B,).
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diffax.nn.edm2 import ATTENTION, CLIP, EPS, RESIDUAL


def build(name: str, net: Any, shape: tuple[int, ...]) -> nn.Module:
    """The PyTorch counterpart of a Flax network."""
    if name == "ddpm":
        return UNet(net, shape)
    return DiT(net, shape) if name.startswith("dit") else EDM2(net, shape)


def sinusoidal(t: torch.Tensor, dim: int) -> torch.Tensor:
    """cos and sin of 1000 t at geometric frequencies (Ho et al. 2020)."""
    frequencies = torch.exp(-math.log(10_000) / (dim // 2) * torch.arange(dim // 2, device=t.device))
    angles = 1000 * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


# DiT


class DiTBlock(nn.Module):
    """Attention and a feed-forward net, each modulated by the embedding (Peebles & Xie 2023)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(channels, 6 * channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(approximate="tanh"), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x: (B, n, C), emb: (B, C)."""
        channels = x.shape[-1:]
        s_1, a_1, g_1, s_2, a_2, g_2 = self.modulation(functional.silu(emb))[:, None].chunk(6, -1)
        h = functional.layer_norm(x, channels, eps=1e-6) * (1 + a_1) + s_1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + g_1 * self.out(h)
        return x + g_2 * self.mlp(functional.layer_norm(x, channels, eps=1e-6) * (1 + a_2) + s_2)


class DiT(nn.Module):
    """DiT on square latents; positions are a constant of the same shape as the published ones."""

    def __init__(self, net: Any, shape: tuple[int, ...]):
        super().__init__()
        channels, patch, latent = net.channels, net.patch_size, shape[-1]
        self.patch, self.remat = patch, net.remat
        self.patches = nn.Conv2d(latent, channels, patch, patch)
        self.register_buffer("positions", 0.5 * torch.randn(1, shape[0] * shape[1] // patch**2, channels))
        self.time = nn.Sequential(nn.Linear(256, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.label = nn.Embedding(net.num_classes + 1, channels)
        self.blocks = nn.ModuleList(DiTBlock(channels, net.num_heads) for _ in range(net.depth))
        self.modulation, self.out = nn.Linear(channels, 2 * channels), nn.Linear(channels, patch**2 * latent)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """See the module."""
        h = self.patches(x)
        grid = h.shape[-2:]
        h = h.flatten(2).transpose(1, 2) + self.positions
        emb = self.time(sinusoidal(t, 256)) + self.label(label)
        for block in self.blocks:
            h = checkpoint(block, h, emb, use_reentrant=False) if self.remat else block(h, emb)
        shift, scale = self.modulation(functional.silu(emb))[:, None].chunk(2, -1)
        h = self.out(functional.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        h = h.unflatten(1, grid).unflatten(-1, (self.patch, self.patch, -1))
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], -1, *x.shape[2:])


# EDM2


def unit(x: torch.Tensor, dim: Any) -> torch.Tensor:
    """x over its root mean square (Karras et al. 2024, equation 66)."""
    return x / (EPS + x.float().square().mean(dim, keepdim=True).sqrt()).to(x.dtype)


def mp_sum(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """The sum that keeps the magnitude (equation 88)."""
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def mp_cat(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The concatenation that keeps the magnitude (equation 103)."""
    scale = (2 * (a.shape[1] + b.shape[1])) ** 0.5
    return torch.cat([scale * 0.5 / a.shape[1] ** 0.5 * a, scale * 0.5 / b.shape[1] ** 0.5 * b], 1)


class MPConv(nn.Module):
    """A convolution, or a linear map for size 0, with weights of unit magnitude."""

    def __init__(self, inputs: int, features: int, size: int = 0):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.randn(features, inputs, *(size,) * (2 if size else 0)))

    def forward(self, x: torch.Tensor, gain: Any = 1.0) -> torch.Tensor:
        """x: (B, C) or (B, C, H, W)."""
        w = unit(self.weight, tuple(range(1, self.weight.ndim))) * (gain / math.sqrt(self.weight[0].numel()))
        if self.size:
            return functional.conv2d(x, w, padding=self.size // 2)
        return functional.conv2d(x, w[..., None, None]) if x.ndim == 4 else functional.linear(x, w)


class EDM2Block(nn.Module):
    """Residual block of the encoder or the decoder, with attention where it has heads."""

    def __init__(self, inputs: int, features: int, emb: int, encoder: bool, heads: int):
        super().__init__()
        self.encoder, self.heads = encoder, heads
        self.skip = None if inputs == features else MPConv(inputs, features)
        self.emb, self.gain = MPConv(emb, features), nn.Parameter(torch.full((), 0.1))
        self.conv_1, self.conv_2 = MPConv(features if encoder else inputs, features, 3), MPConv(features, features, 3)
        if heads:
            self.qkv, self.out = MPConv(features, 3 * features), MPConv(features, features)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W), emb: (B, E)."""
        if self.encoder:
            x = unit(x if self.skip is None else self.skip(x), 1)
        h = self.conv_1(functional.silu(x) / 0.596) * (1 + self.emb(emb, self.gain))[..., None, None]
        h = self.conv_2(functional.silu(h) / 0.596)
        if not self.encoder and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, h, RESIDUAL)
        if self.heads:
            q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).flatten(4).transpose(-1, -2).unbind(1)
            h = functional.scaled_dot_product_attention(unit(q, -1), unit(k, -1), unit(v, -1))
            x = mp_sum(x, self.out(h.transpose(-1, -2).reshape(x.shape)), ATTENTION)
        return x.clamp(-CLIP, CLIP)


class EDM2(nn.Module):
    """The magnitude-preserving U-Net, configuration G."""

    def __init__(self, net: Any, shape: tuple[int, ...]):
        super().__init__()
        widths, emb = net.widths, max(net.widths)
        heads = [w // net.head_channels if level in net.attention_levels else 0 for level, w in enumerate(widths)]
        self.time, self.label = MPConv(net.channels, emb), MPConv(net.num_classes + 1, emb)
        self.register_buffer("frequency", torch.randn(net.channels))
        self.conv_in = MPConv(shape[-1] + 1, widths[0], 3)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.plan: list[str] = []
        width, skips = widths[0], [widths[0]]
        for level, features in enumerate(widths):
            if level:
                self.encoder.append(EDM2Block(width, width, emb, True, 0))
                self.plan.append("down")
                skips.append(width)
            for _ in range(net.num_res_blocks):
                self.encoder.append(EDM2Block(width, features, emb, True, heads[level]))
                self.plan.append("")
                width = features
                skips.append(width)
        last = widths[-1]
        self.middle = nn.ModuleList(
            [EDM2Block(last, last, emb, False, last // net.head_channels), EDM2Block(last, last, emb, False, 0)]
        )
        self.plan_up: list[str] = []
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                self.decoder.append(EDM2Block(width, width, emb, False, 0))
                self.plan_up.append("up")
            for _ in range(net.num_res_blocks + 1):
                self.decoder.append(EDM2Block(width + skips.pop(), widths[level], emb, False, heads[level]))
                self.plan_up.append("skip")
                width = widths[level]
        self.conv_out, self.gain = MPConv(width, shape[-1], 3), nn.Parameter(torch.full((), 0.1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """See the module."""
        emb = self.time(2**0.5 * torch.cos(2 * math.pi * 4 * t[:, None] * self.frequency))
        classes = self.label.weight.shape[1]
        emb = (
            functional.silu(
                mp_sum(emb, self.label(functional.one_hot(label, classes).to(emb.dtype) * classes**0.5), 0.5)
            )
            / 0.596
        )
        h = self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], 1))
        skips = [h]
        for block, plan in zip(self.encoder, self.plan, strict=True):
            h = block(functional.avg_pool2d(h, 2) if plan == "down" else h, emb)
            skips.append(h)
        for block in self.middle:
            h = block(h, emb)
        for block, plan in zip(self.decoder, self.plan_up, strict=True):
            h = block(functional.interpolate(h, scale_factor=2.0) if plan == "up" else mp_cat(h, skips.pop()), emb)
        return self.conv_out(h, self.gain)


# The U-Net


class UNet(nn.Module):
    """diffusers' UNet2DModel with the widths, blocks and attention of ours."""

    def __init__(self, net: Any, shape: tuple[int, ...]):
        super().__init__()
        from diffusers import UNet2DModel

        attends = [level in net.attention.levels for level in range(len(net.channel_multipliers))]
        self.net = UNet2DModel(
            sample_size=shape[0],
            in_channels=shape[-1],
            out_channels=shape[-1],
            layers_per_block=net.num_res_blocks,
            block_out_channels=tuple(net.channels * m for m in net.channel_multipliers),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=None,
            norm_num_groups=min(32, net.channels // 4),
            dropout=net.dropout_rate,
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: Any = None) -> torch.Tensor:
        """See the module."""
        return self.net(x, 1000 * t).sample

"""Vision transformers: a tiny one for images of 8x8 to 32x32, and DeiT-Tiny for 224x224.

An Image is Worth 16x16 Words (Dosovitskiy et al., 2021).
Training data-efficient image transformers & distillation through attention (Touvron et al., 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.zoo.registry import Size, check_counts, register_model


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, width], written out so that every product is seen."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = torch.matmul(query, key.transpose(-2, -1)) * self.scale
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return y


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a perceptron with GELU, each with a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """Patches, a class token and learned positions, blocks, norm, and a Linear on the class token."""

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: Size,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        if size[0] % patch or size[1] % patch:
            raise UsageError(
                f"images of {size[0]}x{size[1]} do not divide into patches of {patch}; choose another `patch`."
            )
        if width % heads:
            raise UsageError(f"width {width} does not divide into {heads} heads.")
        tokens = (size[0] // patch) * (size[1] // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        first = self.class_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self.positions
        tokens = self.norm(self.blocks(tokens))
        logits: Tensor = self.head(tokens[:, 0])
        return logits


@register_model("vit_micro", summary="vision transformer, 64 wide, 4 blocks, images of 8x8 to 32x32")
def vit_micro(
    *,
    classes: int,
    channels: int,
    size: Size,
    patch: int | None = None,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: int = 2,
) -> nn.Module:
    """A transformer of `depth` blocks; patches of 4 pixels, or of 2 for images below 16."""
    pixels = patch if patch is not None else 4 if min(size) >= 16 else 2
    check_counts("vit_micro", patch=pixels, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
    return VisionTransformer(
        classes=classes,
        channels=channels,
        size=size,
        patch=pixels,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
    )


@register_model("deit_tiny", summary="DeiT-Tiny: 192 wide, 12 blocks, 3 heads, patch 16, 224x224", size=(224, 224))
def deit_tiny(*, classes: int, channels: int, size: Size, patch: int = 16, depth: int = 12) -> nn.Module:
    """DeiT-Tiny without the distillation token; `size` must divide into patches of `patch`."""
    check_counts("deit_tiny", patch=patch, depth=depth)
    return VisionTransformer(
        classes=classes, channels=channels, size=size, patch=patch, width=192, depth=depth, heads=3, mlp_ratio=4
    )

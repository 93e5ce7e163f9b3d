"""A decoder for language modelling: tokens in, logits of the next token at each position.

Attention Is All You Need (Vaswani et al., 2017), as in LLaMA: Open and Efficient Foundation Language Models (Touvron
et al., 2023): root mean square norms before each part (Zhang & Sennrich, 2019), rotary positions (RoFormer, Su et al.,
2021), and a perceptron gated by SiLU (GLU Variants Improve Transformer, Shazeer, 2020). Several query heads share one
key and value head (GQA, Ainslie et al., 2023), and the head has the embedding's weights (Using the Output Embedding
to Improve Language Models, Press & Wolf, 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbyte.errors import UsageError
from subbyte.models.zoo.registry import check_counts, register_model

BASE = 10_000.0  # of the wavelengths of rotary positions
DEVIATION = 0.02  # of initial weights


class Rotary(nn.Module):
    """Turns pairs of channels by an angle that grows with the position: [..., T, channels] -> the same."""

    cos: Tensor
    sin: Tensor

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        rates = BASE ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angles = torch.arange(context, dtype=torch.float64)[:, None] * rates
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Causal attention over [N, T, width], written out so that every product is seen; `kv_heads` keys and values."""

    future: Tensor

    def __init__(self, width: int, heads: int, kv_heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.channels = heads, kv_heads, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.channels, bias=False)
        self.value = nn.Linear(width, kv_heads * self.channels, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rotary = Rotary(self.channels, context)
        self.register_buffer("future", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            layer(x).reshape(batch, tokens, -1, self.channels).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        shared = self.heads // self.kv_heads  # query heads of one key: more rows of one product, no copies of the key
        rows = self.rotary(query).reshape(batch, self.kv_heads, shared * tokens, self.channels)
        scores = rows @ self.rotary(key).transpose(-2, -1) * self.channels**-0.5
        scores = scores.reshape(batch, self.kv_heads, shared, tokens, tokens)
        scores = scores.masked_fill(self.future[:tokens, :tokens], float("-inf"))
        weights = torch.softmax(scores, dim=-1).reshape(batch, self.kv_heads, shared * tokens, tokens)
        mixed = (weights @ value).reshape(batch, self.heads, tokens, self.channels)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return y


class Block(nn.Module):
    """Attention, then a gated perceptron, each after a norm and with a shortcut around both."""

    def __init__(self, width: int, heads: int, kv_heads: int, context: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 3 // 32) * 32  # 8/3 of the width: as many weights as two layers of 4 times the width
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, kv_heads, context)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Decoder(nn.Module):
    """Tokens int64 [N, T], T at most `context` -> logits float32 [N, T, vocabulary]; those at t see tokens 0...t."""

    def __init__(
        self, vocabulary: int, context: int, *, width: int, depth: int, heads: int, kv_heads: int, tied: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, heads, kv_heads, context) for _ in range(depth)))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # what is added to the shortcut is smaller, the deeper the network (GPT-2)
                added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=DEVIATION * ((2 * depth) ** -0.5 if added else 1))
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return logits


@register_model("decoder", summary="decoder for language modelling, 128 wide, 4 blocks", size=(128,), takes="tokens")
def decoder(
    *,
    shape: tuple[int],
    outputs: int,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    context: int | None = None,
    tied: bool = True,
) -> nn.Module:
    """`depth` blocks over at most `context` tokens (without it, the data's window) of a vocabulary of `outputs`.

    With `tied`, the head has the weights of the embedding; both then stay in float under any scheme, because an
    embedding does. With `tied=False` the head is a layer of its own, the last one, and is quantized.
    """
    longest = shape[0] if context is None else context
    check_counts("decoder", width=width, depth=depth, heads=heads, kv_heads=kv_heads, context=longest)
    if width % (2 * heads):
        raise UsageError(f"width {width} does not divide into {heads} heads of an even number of channels.")
    if heads % kv_heads:
        raise UsageError(f"{heads} query heads do not divide among {kv_heads} key and value heads.")
    if shape[0] > longest:
        raise UsageError(f"a window of {shape[0]} tokens is longer than the model's context of {longest}.")
    return Decoder(outputs, longest, width=width, depth=depth, heads=heads, kv_heads=kv_heads, tied=tied)

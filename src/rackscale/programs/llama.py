"""A Llama-architecture language model in plain torch, with the parameter names of Hugging Face's LlamaForCausalLM.

Same names, so that export is a copy; same arithmetic, so that any engine that serves Llama serves what was trained
here (tests compare the logits with transformers').
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rackscale.programs.settings import LlamaShape


class Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.shape.head).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, -1, self.shape.head).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, self.shape.head).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        shared = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class Mlp(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: LlamaShape, vocab: int, length: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        cos, sin = _rope(shape, length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Tokens [batch, length] to logits [batch, length, vocab]; the output head is the embedding, transposed."""

    def __init__(self, shape: LlamaShape, *, vocab: int, length: int, seed: int) -> None:
        """`length`: the longest sequence that will be fed; `seed` alone decides the weights."""
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape, vocab, length)
        self._draw(seed)

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(self.model(tokens), self.model.embed_tokens.weight)

    def _draw(self, seed: int) -> None:
        """Normal weights; what adds to the residual stream is scaled down by its depth (as GPT-2 does)."""
        generator = torch.Generator().manual_seed(seed)
        depth = math.sqrt(2 * self.shape.layers)
        for name, weight in self.named_parameters():
            if "norm" in name:
                nn.init.ones_(weight)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.02 / depth if residual else 0.02, generator=generator)


def _rope(shape: LlamaShape, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, head] of rotary position embedding (Su et al. 2021), halves side by side as in Llama."""
    exponent = torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)

"""The CodeGen2 forward pass in PyTorch, on one page: the truth that every faster engine is tested against.

It knows neither checkpoint files (checkpoint/ brings weights into this layout: Q, K, V each contiguous, heads in
natural order), nor quantisation, nor requests. Follows GPT-J's parallel block as CodeGen2 (arXiv 2305.02309) uses
it: x + attn(ln_1(x)) + mlp(ln_1(x)), rotary positions on the first channels of each head, interleaved pairs.

Letters: B rows, T tokens in this call, S tokens visible, H heads, D head size, C n_embd, V vocab, R rotary_dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Slots
from .config import ModelConfig


def rotary_tables(positions: Tensor, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """Return what rotate multiplies with, float32, both (B, 1, T, R), of positions (B, T).

    The i-th pair turns by p / 10000^(2i/R): cos for both channels of a pair, then -sin and sin.
    """
    inverse = 10000.0 ** (
        -torch.arange(0, rotary_dim, 2, device=positions.device, dtype=torch.float32) / rotary_dim
    )
    angle = positions.float()[:, None, :, None] * inverse  # (B, 1, T, R/2)
    sin = angle.sin()
    return angle.cos().repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R channels of x (B, H, T, D) by position: pair (2i, 2i+1) is one complex number. float32 out."""
    R = cos.shape[-1]
    x = x.float()
    # Pairs change places by flip, whose gradient is a flip too; that of two strided slices would be zeros, copied into.
    swapped = x[..., :R].reshape(*x.shape[:-1], R // 2, 2).flip(-1).flatten(-2)
    turned = x[..., :R] * cos + swapped * sin
    return torch.cat((turned, x[..., R:]), dim=-1) if x.shape[-1] > R else turned


class Attention(nn.Module):
    """Causal self-attention; no biases; scores and softmax in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv_proj = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, slots: Slots | None, layer: int
    ) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv_proj(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if slots is not None:
            k, v = slots.write(layer, k, v)  # (B, H, S, D)
        y = self.mix(q, k.float(), v.float(), mask)
        out: Tensor = self.out_proj(y.to(x.dtype).transpose(1, 2).reshape(B, T, C))
        return out

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return values (B, H, T, D) weighted by the softmax of scores; q (B, H, T, D), k and v (B, H, S, D)."""
        # Without a mask the call is a whole sequence.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class MLP(nn.Module):
    """Two linear maps with biases around the tanh form of GELU (gelu_new)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.fc_out = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc_out(F.gelu(self.fc_in(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One LayerNorm, then attention and MLP side by side on its output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, slots: Slots | None, layer: int
    ) -> Tensor:
        h = self.ln_1(x)
        out: Tensor = x + self.attn(h, rotary, mask, slots, layer) + self.mlp(h)
        return out


class Transformer(nn.Module):
    """Embedding, blocks and the last LayerNorm: the released state dict's `transformer.` part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        weight = torch.randn(config.vocab_size, config.n_embd)  # by itself, on meta, it imports a compiler
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, _weight=weight)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)


class CodeGen2(nn.Module):
    """The whole model; parameter names equal the released state dict's, except that QKV is plain Q, K, V."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights: normal(0, initializer_range), the two maps into the residual stream divided by
        sqrt(2 n_layer) as in GPT-2, biases 0, LayerNorm 1 and 0."""
        for name, p in self.named_parameters():
            self.init_weight(name, p, generator)

    def init_weight(self, name: str, p: Tensor, generator: torch.Generator | None = None) -> None:
        """Draw one weight into p; all of them in order, with one generator, are init_weights."""
        std = self.config.initializer_range
        if p.ndim == 2:
            into_stream = name.endswith(("out_proj.weight", "fc_out.weight"))
            scale = std / math.sqrt(2 * self.config.n_layer) if into_stream else std
            nn.init.normal_(p, 0.0, scale, generator=generator)
        else:
            nn.init.constant_(p, 1.0 if name.endswith(("ln_1.weight", "ln_f.weight")) else 0.0)

    def hidden(self, ids: Tensor, slots: Slots | None = None, documents: Tensor | None = None) -> Tensor:
        """Return the last hidden states (B, T, C), after ln_f, of ids (B, T).

        slots: where the tokens lie in a cache; a token sees the slots of its row up to its own position. Without it
        rows are whole sequences, and with documents (B, T) a token sees those of its own number only.
        Raises ValueError when the context is full.
        """
        T = ids.shape[1]
        if self.config.n_ctx < T:
            raise ValueError(f"context: {T} tokens do not fit {self.config.n_ctx}; shorten the prompt")
        at = torch.arange(T, device=ids.device)
        positions, mask = at[None], None
        if slots is not None:
            positions = slots.positions
            visible = torch.arange(slots.n_visible, device=ids.device)  # (S,)
            mask = (visible <= positions[:, :, None])[:, None]  # (B, 1, T, S)
        elif documents is not None:
            same = documents[:, None, :, None] == documents[:, None, None, :]
            mask = same & (at <= at[:, None])  # (B, 1, T, T)
        rotary = rotary_tables(positions, self.config.rotary_dim)
        x: Tensor = self.transformer.wte(ids)  # (B, T, C)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, rotary, mask, slots, layer)
        out: Tensor = self.transformer.ln_f(x)
        return out

    def forward(self, ids: Tensor, slots: Slots | None = None) -> Tensor:
        """Return float32 logits (B, T, V) of ids (B, T)."""
        logits: Tensor = self.lm_head(self.hidden(ids, slots))
        return logits.float()

"""The decoder: pre-norm RMSNorm, SwiGLU, grouped queries, QK-norm, RoPE, one embedding for input and output.

AFM report (arXiv 2407.21075), section 2. Tensors are named as in Hugging Face's Qwen3, so a checkpoint is an export.
Sizes: B batch, T new tokens, S tokens in all (cached and new), H query heads, K key heads, D head width.
"""

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from openafm.model.config import ModelConfig

Mask = Tensor | BlockMask | None
"""Who may look at whom: bool `(B, 1, T, S)`, the same as a BlockMask, or None for causal."""


class RMSNorm(nn.Module):
    """x / RMS(x) * gain (arXiv 1910.07467, equation 4), over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(..., width)`, in float32; the result has the precision that matrix products take."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        normalised: Tensor = _RMSNorm.apply(x, self.weight, self.eps, dtype)  # type: ignore[no-untyped-call]
        return normalised


class _RMSNorm(torch.autograd.Function):
    """With y = x * r * w and r = 1 / RMS(x): dx = r (dy w - x r mean(dy w x r)), dw = sum(dy x r).

    Written out, since autograd's own way of it passes over the activations twice as often.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """`(..., width)` in `dtype`."""
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        inverse: Tensor = (norm.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The two gradients, each in the precision of its tensor."""
        x, weight, inverse = ctx.saved_tensors
        unit, scaled = x * inverse, grad * weight
        grad_weight = (grad * unit).flatten(0, -2).sum(0)
        mean = (scaled * unit).mean(-1, keepdim=True)
        grad_x = torch.addcmul(scaled, unit, mean, value=-1).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None


def rope_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(..., T, head_dim)` of RoPE (arXiv 2104.09864, section 3.2.2) at `positions` `(..., T)`."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions.float().unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + D/2}) of `(B, heads, T, D)` by their position's angle."""
    turned: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


class _Rotate(torch.autograd.Function):
    """The gradient is turned back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Both halves of cosines and sines are the same."""
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Turn back."""
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    cos, sin = cos[..., :half], sin[..., :half]
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    turned[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    turned[..., half:] = torch.addcmul(second * cos, first, sin)
    return turned


class Cache:
    """Keys and values of the tokens seen so far, one pair of `(B, K, capacity, D)` tensors a layer."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append `(B, K, T, D)` of one layer; all of its keys and values so far."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep only these sequences of the batch."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class Keys(Protocol):
    """What attention reads beside the new tokens: a `Cache`, or the other processes' part of each sequence."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values that there are with these, `(B, K, S, D)`."""
        ...


class SequencePart(Keys, Protocol):
    """The part of each sequence that this process holds (openafm.training.context)."""

    def place(self, tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Mask]:
        """Positions `(T,)` of `tokens` `(B, T)` in the whole sequences, and which of all keys each may see."""
        ...


def visible(positions: Tensor, keys: Tensor, documents: Tensor | None, key_documents: Tensor | None) -> Mask:
    """The causal mask of queries at `positions` `(T,)` over keys at `keys` `(S,)`, within one document only.

    `documents` `(B, T)` and `key_documents` `(B, S)` number the document of each token; None: all are one. On a GPU it
    is a BlockMask, whose empty blocks cost nothing; elsewhere a tensor.
    """
    if not positions.is_cuda:
        seen = (keys <= positions.unsqueeze(1)).unsqueeze(0)
        if documents is not None and key_documents is not None:
            seen = seen & (documents.unsqueeze(2) == key_documents.unsqueeze(1))
        return seen.unsqueeze(1)
    return block_mask(positions, keys, documents, key_documents)


def block_mask(positions: Tensor, keys: Tensor, documents: Tensor | None, key_documents: Tensor | None) -> BlockMask:
    """`visible` as flex_attention takes it."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query may see a key: one at its position or before, in its own document."""
        causal = keys[key] <= positions[query]
        if documents is None or key_documents is None:
            return causal
        return causal & (documents[row, query] == key_documents[row, key])

    rows = None if documents is None else len(documents)
    return create_block_mask(sees, rows, None, len(positions), len(keys), device=positions.device)


def _added(mask: Tensor, x: Tensor) -> Tensor:
    """A bool mask as what is added to the scores, of the queries' precision: SDPA would keep one of each layer's."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Grouped-query attention `(B, H, T, D)` of queries `(B, H, T, D)` over keys and values `(B, K, S, D)`."""
    if isinstance(mask, BlockMask):
        flexible: Tensor = _compiled_flex()(query, key, value, block_mask=mask, enable_gqa=True)
        return flexible
    if mask is None and query.requires_grad and _short(query, key):
        return short_attention(query, key, value)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and query.shape[2] > 1, enable_gqa=True
    )


SHORT = 512
"""Up to so many tokens, a CPU trains faster with whole matrices of bfloat16 scores than with its flash kernel."""


def _short(query: Tensor, key: Tensor) -> bool:
    whole = query.shape[2] == key.shape[2] <= SHORT
    return whole and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def short_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal `attend` by matrix products over all scores at once; heads that share a key are one matrix."""
    batch, heads, length, width = query.shape
    together = (query * width**-0.5).reshape(batch, key.shape[1], -1, width)
    future = torch.full((length, length), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = (together @ key.transpose(-1, -2)).view(batch, heads, length, length) + future
    shares = torch.softmax(scores, -1).view(batch, key.shape[1], -1, length)
    return (shares @ value).view(batch, heads, length, width)


@cache
def _compiled_flex() -> Any:
    """flex_attention as one kernel; not compiled it would hold every score."""
    return torch.compile(flex_attention)


class Attention(nn.Module):
    """Grouped-query attention with QK-norm before RoPE."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, queries, bias=False)
        self.k_proj = nn.Linear(config.d_model, keys, bias=False)
        self.v_proj = nn.Linear(config.d_model, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Mask, others: Keys | None) -> Tensor:
        """Mix `(B, T, d_model)` over positions; causal unless `mask` says more."""
        batch, length, _ = x.shape
        query, key, value = (
            projection(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, *rope), rotate(key, *rope)
        if others is not None:
            key, value = others.extend(self.layer, key, value)
        mixed = attend(query, key, value, mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), with the pruning mask on the inner activation."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.mask: Tensor | None = None
        """`(d_ff,)`, set while masks are learned (openafm.pretraining.pruning)."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of `(B, T, d_model)`."""
        inner = F.silu(self.gate_proj(x)) * self.up_proj(x)
        if self.mask is not None:
            inner = inner * self.mask
        out: Tensor = self.down_proj(inner)
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, dropout: float):
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Mask, others: Keys | None) -> Tensor:
        """Add both halves to the residual stream `(B, T, d_model)`."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rope, mask, others))
        x = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x


class Decoder(nn.Module):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: ModelConfig, dropout: float):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, i, dropout) for i in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)


class Transformer(nn.Module):
    """The language model: token ids in, logits over the next token out."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        self.recompute = False
        """Run each layer again in the backward pass instead of keeping what it computed: less memory, same bits."""
        self.part: SequencePart | None = None
        """Set where several processes share each sequence (openafm.training.context)."""

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states `(B, T, d_model)`, after the final norm.

        `padding` `(B,)` counts the padding tokens at the left of each sequence; they are never attended to, and
        positions start behind them. `documents` `(B, T)` numbers the document of each token: attention stays within
        it. Positions run on over the whole row, for RoPE knows distances only.
        """
        past = 0 if cache is None else cache.length
        steps = torch.arange(past, past + tokens.shape[1], device=tokens.device)
        positions: Tensor = steps
        mask: Mask = None
        if self.part is not None:
            positions, mask = self.part.place(tokens, documents)
        elif documents is not None:
            mask = visible(steps, steps, documents, documents)
        elif padding is not None:
            positions = (steps - padding.unsqueeze(1)).clamp(min=0).unsqueeze(1)
            mask = self._mask(steps, padding)
        elif past and tokens.shape[1] > 1:
            mask = self._mask(steps, torch.zeros(1, dtype=torch.long, device=tokens.device))
        rope = rope_angles(positions, self.config.head_dim, self.config.rope_base)
        x = self.model.embed_tokens(tokens)
        if isinstance(mask, Tensor) and torch.is_grad_enabled():
            mask = _added(mask, x)
        others = self.part or cache
        for layer in self.model.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, rope, mask, others, use_reentrant=False)
            else:
                x = layer(x, rope, mask, others)
        if cache is not None:
            cache.length += tokens.shape[1]
        hidden: Tensor = self.model.norm(x)
        return hidden

    @staticmethod
    def _mask(steps: Tensor, padding: Tensor) -> Tensor:
        """Who may look at whom, `(B, 1, T, S)`: causal, and no padding (a padding token sees itself, never NaN)."""
        every = torch.arange(int(steps[-1]) + 1, device=steps.device)
        causal = every <= steps.unsqueeze(1)
        real = every >= padding.unsqueeze(1)
        mask = (causal & real.unsqueeze(1)) | (every == steps.unsqueeze(1))
        return mask.unsqueeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `(..., vocab)` of hidden states `(..., d_model)`."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits `(B, T, vocab)` of token ids `(B, T)`; the rest as in `hidden`."""
        return self.logits(self.hidden(tokens, cache, padding, documents))

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [block for block in self.model.layers if isinstance(block, Block)]

    def linears(self) -> dict[str, nn.Linear]:
        """The projections of all blocks by name: what muParam scales, palettization packs and adapters sit on."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

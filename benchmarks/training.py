"""Training speed: tokens a second of a full optimizer step, against Hugging Face's model in a plain loop.

    openafm bench training --d-ff 1536 --seconds 20

Ours is openafm's model, loss and RMSProp with momentum; the peer is transformers' Qwen3 of the same shape with torch's
fused AdamW. Both in fp32 on the same batch. The limit is what the matrix products alone would take at this machine's
measured fp32 GEMM rate.
"""

import time

import torch
import transformers

from harness import alternate, options, show
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.training.losses import next_token
from openafm.training.optimizers import RMSPropMomentum


def main() -> None:
    o = options(
        __doc__, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384, vocab_size=2048,
        batch=8, length=256, seconds=20.0, threads=2,
    )  # fmt: skip
    torch.set_num_threads(o.threads)
    names = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")
    config = ModelConfig(**{name: getattr(o, name) for name in names})
    tokens = torch.randint(0, o.vocab_size, (o.batch, o.length + 1))
    steps = max(1, int(o.seconds / (2 * (o.repeats + 1) * probe_seconds(ours(config, tokens)))))
    contestants = {"openafm": ours(config, tokens), "transformers Qwen3, plain loop": peer(config, tokens)}
    rates = {name: (lambda step=step: rate(step, steps, o.batch * o.length)) for name, step in contestants.items()}
    figures = alternate(rates, o.repeats)
    flops = 6 * (config.projection_parameters + config.embedding_parameters)
    flops += 12 * config.n_layers * config.n_heads * config.head_dim * o.length
    show(
        "training", "tokens/s", figures, limit=gemm_flops() / flops, limit_is="measured fp32 GEMM rate",
        detail={"shape": config.model_dump(), "batch_tokens": o.batch * o.length}, as_json=o.json,
    )  # fmt: skip


def ours(config: ModelConfig, tokens: torch.Tensor):
    model = initialise(Transformer(config), 0).train()
    optimizer = RMSPropMomentum(parameter_groups(model, 128), 0.01, 3e-4)

    def step() -> None:
        next_token(model(tokens[:, :-1]), tokens[:, 1:], 1e-6).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peer(config: ModelConfig, tokens: torch.Tensor):
    shape = transformers.Qwen3Config(
        vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads, head_dim=config.head_dim,
        intermediate_size=config.d_ff, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def probe_seconds(step) -> float:
    step()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def rate(step, steps: int, tokens: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * tokens / (time.perf_counter() - started)


def gemm_flops(size: int = 1024, repeats: int = 10) -> float:
    """Best floating-point operations a second of a square fp32 matrix product."""
    a, b = torch.randn(2, size, size)
    best = min(probe_seconds(lambda: a @ b) for _ in range(repeats))
    return 2 * size**3 / best


if __name__ == "__main__":
    main()

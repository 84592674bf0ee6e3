"""Training speed and memory: a full optimizer step of one shape, on one batch, in one precision, against its peers.

    openafm bench training --size 27M --seconds 60
    openafm bench training --size 100M --memory yes

Ours is openafm's model, chunked loss with z-loss and RMSProp with momentum, as `openafm run` trains, and the same with
its blocks compiled, as it does on long steps. Peers, all with the gradient clipped to norm 1 and torch's fused AdamW:
Hugging Face's Trainer (transformers' Qwen3, bf16 autocast by accelerate), litgpt's GPT and the loop of its pretrain.py
(torch.compile, Fabric bf16-mixed, chunked cross-entropy), and the plainest loop over transformers' Qwen3 in autocast.
All train the same shape with tied embeddings on the same tokens. A contestant whose packages are missing is left out:

    pip install --no-deps litgpt lightning pytorch-lightning lightning-utilities torchmetrics 'jsonargparse<=4.41'

The limit is what the matrix products alone would take at this machine's measured GEMM peak in that precision: 6 FLOPs a
weight and token (the embedding once), and 12 layers d_attention length for attention, its masked half counted too.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import torch
from torch.nn import functional as F

from harness import alternate, options, show
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise, parameter_groups
from openafm.model.presets import SIZES
from openafm.stage import Hardware
from openafm.training.hardware import autocast
from openafm.training.losses import chunked_next_token
from openafm.training.optimizers import RMSPropMomentum

VOCABULARY = {"1M": 2048, "7M": 4096, "27M": 4096, "100M": 16_384}
Step = Callable[[], None]


def main() -> None:
    o = options(
        __doc__, size="27M", batch=8, length=256, seconds=60.0, threads=2, precision="bfloat16", only="", memory="no"
    )
    torch.set_num_threads(o.threads)
    if o.memory == "one":  # in a process of its own: peak over what was there after the imports
        print(peak_memory(o))
        return
    config = shape(o.size)
    names = [name for name in CONTESTANTS if o.only in name]
    if o.memory == "yes":
        figures = {name: [memory_of(name, o) for _ in range(o.repeats)] for name in names}
        show("training memory " + o.size, "MB", figures, limit=None, as_json=o.json, better="less")
        return
    built = {name: step for name in names if (step := build(name, config, o))}
    warm = {name: [seconds(step) for _ in range(3)][-1] for name, step in built.items()}
    steps = {name: max(1, int(o.seconds / (len(built) * o.repeats * warm[name]))) for name in built}
    tokens = o.batch * o.length
    figures = alternate(
        {name: lambda name=name, step=step: rate(step, steps[name], tokens) for name, step in built.items()}, o.repeats
    )
    peak = gemm_flops(o.precision)
    show(
        f"training {o.size}", "tokens/s", figures, limit=peak / flops_per_token(config, o.length),
        limit_is=f"measured {o.precision} GEMM peak, {peak / 1e9:,.0f} GFLOP/s", as_json=o.json,
        detail={"shape": config.model_dump(), "batch": o.batch, "length": o.length, "precision": o.precision},
    )  # fmt: skip


def shape(size: str) -> ModelConfig:
    dial = SIZES[size]
    return ModelConfig(
        vocab_size=VOCABULARY[size], d_model=dial.d_model, n_layers=dial.n_layers, n_heads=dial.n_heads,
        n_kv_heads=dial.n_heads // 2, head_dim=dial.head_dim, d_ff=dial.d_ff,
    )  # fmt: skip


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Model FLOPs of forward and backward, as PaLM counts them (arXiv 2204.02311, appendix B)."""
    weights = config.projection_parameters + config.embedding_parameters
    return 6 * weights + 12 * config.n_layers * config.n_heads * config.head_dim * length


def batch_of(config: ModelConfig, o: argparse.Namespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (o.batch, o.length + 1), generator=generator)


def ours(config: ModelConfig, o: argparse.Namespace, compiled: bool = False) -> Step:
    model = initialise(Transformer(config), 0).train()
    optimizer = RMSPropMomentum(parameter_groups(model, 128), 0.01, 3e-4)
    hardware, tokens = Hardware(precision=o.precision), batch_of(config, o)
    if compiled:
        for block in model.blocks:
            block.compile(dynamic=False)

    def step() -> None:
        with autocast(hardware):
            hidden, output = model.hidden(tokens[:, :-1]), model.model.embed_tokens.weight
            loss = chunked_next_token(hidden, output, tokens[:, 1:], 1e-6).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compiled(config: ModelConfig, o: argparse.Namespace) -> Step:
    return ours(config, o, compiled=True)


def qwen3(config: ModelConfig):
    import transformers

    shape = transformers.Qwen3Config(
        vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads, head_dim=config.head_dim,
        intermediate_size=config.d_ff, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(shape).train()


def plain(config: ModelConfig, o: argparse.Namespace) -> Step:
    model, tokens = qwen3(config), batch_of(config, o)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        with autocast(Hardware(precision=o.precision)):
            logits = model(input_ids=tokens[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def trainer(config: ModelConfig, o: argparse.Namespace) -> Step:
    """One step of `Trainer.train`, resumed step by step by a generator that its data loader reads."""
    import threading
    from queue import Queue

    import transformers

    model, tokens = qwen3(config), batch_of(config, o)
    asked, done = Queue(maxsize=1), Queue(maxsize=1)

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                asked.get()
                yield from ({"input_ids": row[:-1], "labels": row[:-1]} for row in tokens)

    class Told(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            done.put(True)

    arguments = transformers.TrainingArguments(
        output_dir="/tmp/trainer", max_steps=10**6, per_device_train_batch_size=o.batch, bf16=o.precision == "bfloat16",
        use_cpu=True, optim="adamw_torch_fused", max_grad_norm=1.0, save_strategy="no", logging_strategy="no",
        report_to=[], disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False,
        lr_scheduler_type="constant", learning_rate=1e-3,
    )  # fmt: skip
    loop = transformers.Trainer(model=model, args=arguments, train_dataset=Endless(), callbacks=[Told()])
    threading.Thread(target=loop.train, daemon=True).start()
    asked.put(True)  # the data loader of accelerate reads one batch ahead

    def step() -> None:
        asked.put(True)
        done.get()

    return step


def litgpt(config: ModelConfig, o: argparse.Namespace) -> Step:
    import lightning
    from litgpt import utils
    from litgpt.model import GPT, Config

    shape = Config(
        name="same shape", block_size=o.length, n_layer=config.n_layers, n_embd=config.d_model,
        vocab_size=config.vocab_size, padded_vocab_size=config.vocab_size, n_head=config.n_heads,
        head_size=config.head_dim, n_query_groups=config.n_kv_heads, norm_class_name="RMSNorm", norm_eps=1e-5,
        norm_qk=True, bias=False, parallel_residual=False, shared_attention_norm=False, rotary_percentage=1.0,
        rope_base=500_000, mlp_class_name="LLaMAMLP", intermediate_size=config.d_ff,
    )  # fmt: skip
    precision = "bf16-mixed" if o.precision == "bfloat16" else "32-true"
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision=precision)
    model = GPT(shape)
    model.transformer.wte.weight = model.lm_head.weight
    model = fabric.setup(torch.compile(model))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    tokens = batch_of(config, o)

    def step() -> None:
        loss = utils.chunked_cross_entropy(model(tokens[:, :-1].contiguous()), tokens[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


CONTESTANTS: dict[str, Callable[[ModelConfig, argparse.Namespace], Step]] = {
    "openafm, compiled": compiled,
    "openafm": ours,
    "Hugging Face Trainer": trainer,
    "litgpt, compiled": litgpt,
    "plain PyTorch loop": plain,
}


def build(name: str, config: ModelConfig, o: argparse.Namespace) -> Step | None:
    try:
        return CONTESTANTS[name](config, o)
    except ImportError as error:
        print(f"without {name}: {error}", file=sys.stderr)
        return None


def peak_memory(o: argparse.Namespace) -> str:
    """Megabytes that building and three steps add at most to what the imports had taken, as one line of JSON."""
    small = ModelConfig(vocab_size=64, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32)
    rehearsal = build(o.only, small, argparse.Namespace(**{**vars(o), "batch": 2, "length": 16}))
    if rehearsal is None:
        return "null"
    rehearsal()
    before = psutil.Process().memory_info().rss
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123  (VmHWM begins anew)
        file.write("5")
    step = CONTESTANTS[o.only](shape(o.size), o)
    for _ in range(3):
        step()
    with open("/proc/self/status") as lines:  # noqa: PTH123
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return json.dumps(round((peak - before) / 1e6, 1))


def memory_of(name: str, o: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--only", name, "--memory", "one", "--size", o.size, "--batch", str(o.batch)]
    command += ["--length", str(o.length), "--threads", str(o.threads), "--precision", o.precision]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines:  # what was measured counts, even if the process aborts at its end, as the Trainer's thread may do
        raise SystemExit(f"{name}: {done.stderr[-1000:]}")
    return float(json.loads(lines[-1]))


def seconds(step: Step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def rate(step: Step, steps: int, tokens: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * tokens / (time.perf_counter() - started)


def gemm_flops(precision: str, repeats: int = 8) -> float:
    """Most operations a second of a square matrix product, of several sizes."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(2, size, size, dtype=getattr(torch, precision))
        best = max(best, *(2 * size**3 / seconds(lambda a=a, b=b: a @ b) for _ in range(repeats)))
    return best


if __name__ == "__main__":
    main()

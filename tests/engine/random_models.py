"""Small models of random weights, as packages and folders; how far two models' logits are apart, and draws off."""

import numpy as np
import torch

from openafm.adapters.lora import adapter_state, attach, detach
from openafm.adapters.store import Adapter
from openafm.compression.embedding import quantize_embedding
from openafm.compression.feedback import byte_multiples, on_byte_grid
from openafm.compression.package import write_package
from openafm.engine import Package, TorchEngine
from openafm.engine.packed import Palettized
from openafm.model import ModelConfig, Transformer
from openafm.model.muparam import initialise

SHAPE = ModelConfig(vocab_size=300, d_model=96, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=200)
TEXT = [2, *(int(t) for t in np.random.default_rng(0).integers(3, 300, 60))]


def random_model(shape, seed=0):
    model = initialise(Transformer(shape), seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            tensor.copy_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def random_adapter(model, seed, rank, size=0.1):
    attach(model, rank, 4.0)
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(t.shape, generator=generator) * size for key, t in adapter_state(model).items()}
    detach(model)
    return Adapter({key: tensor.half().float() for key, tensor in state.items()}, rank, 4.0)


def randomly_palettized(shape, bits, group, seed):
    """Codes as likely as a normal distribution makes them, and tables of each group's own on the byte grid."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    spread = np.linspace(-2.2, 2.2, 2**bits) * columns**-0.5
    tables = np.sort(spread * rng.uniform(0.7, 1.4, (-(-rows // group), 1)) + rng.normal(0, 0.005, (1, 2**bits)))
    chances = np.exp(-(np.linspace(-2.2, 2.2, 2**bits) ** 2) / 2)
    indices = rng.choice(2**bits, size=shape, p=chances / chances.sum())
    made = Palettized(indices.astype(np.uint8), tables.astype(np.float16), bits, group)
    return made if bits == 8 else on_byte_grid(made)


def packed(shape, folder, tokenizer, bits, group=16):
    """A package whose projections take turns in `bits`, with two adapters."""
    model = random_model(shape)
    projections = {
        name: randomly_palettized(linear.weight.shape, bits[i % len(bits)], group, i)
        for i, (name, linear) in enumerate(model.linears().items())
    }
    state = model.state_dict()
    rest = {name: tensor.numpy() for name, tensor in state.items() if "norm" in name}
    write_package(
        folder, shape, projections, quantize_embedding(state["model.embed_tokens.weight"].numpy()), rest, tokenizer
    )
    store = Package(folder).adapters
    store.save("mail", random_adapter(model, 1, 2))
    store.save("notes", random_adapter(model, 2, 20))
    return folder


def reference(folder, tokens, adapter=None):
    """Torch's logits `(tokens, vocab)` on the dequantized weights."""
    return TorchEngine.load(folder).use(adapter)(torch.tensor([tokens]))[0].detach().double()


def exact_tables(made):
    """The weights of a projection on the byte grid, by tiles of 16 rows, before float16 rounded their multiples."""
    tiles = [made.indices[first : first + 16].astype(np.int64) for first in range(0, len(made.indices), 16)]
    tables = torch.from_numpy(made.tables[np.arange(len(tiles)) * 16 // made.group]).double()
    uses = torch.from_numpy(np.stack([np.bincount(tile.ravel(), minlength=tables.shape[1]) for tile in tiles]))
    chosen = byte_multiples(tables, uses).numpy()
    return np.concatenate([table[tile] for table, tile in zip(chosen, tiles, strict=True)]).astype(np.float32)


def exact_reference(folder, tokens):
    """`reference` of a package's weights as they were before float16 rounded their tables."""
    engine, package = TorchEngine.load(folder), Package(folder)
    for name, linear in engine.model.linears().items():
        made = package.projection(name)
        if made.bits < 8 and made.group % 16 == 0:
            linear.weight.data = torch.from_numpy(exact_tables(made))
    return engine.use(None)(torch.tensor([tokens]))[0].detach().double().numpy()


def distance(logits, expected):
    """Relative error of logits, in the Euclidean norm."""
    return float(np.linalg.norm(logits - np.asarray(expected)) / np.linalg.norm(expected))


def divergence(expected, logits):
    """KL of the native engine's next-token distributions from torch's, in nats, averaged over tokens."""
    p, q = (torch.log_softmax(torch.as_tensor(x).double(), -1) for x in (expected, logits))
    return float((p.exp() * (p - q)).sum(-1).mean())


def follow(counts, chances, least=0):
    """Whether draws could have come from a distribution: chi-squared of the tokens expected more than `least` times."""
    expected = counts.sum() * chances
    some = expected > least
    statistic = ((counts - expected)[some] ** 2 / expected[some]).sum()
    return statistic < some.sum() + 5 * np.sqrt(2 * some.sum())  # mean k, variance 2k

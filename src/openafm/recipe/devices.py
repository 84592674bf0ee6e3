"""What a training step takes on devices of a kind: the table of devices, and a model of compute and communication.

The model, for one step of `tokens` on N devices:

    compute        FLOPs a token * tokens / (N * peak * MFU), MFU as measured on models of this size on such devices
      FLOPs a token  6 * weights + 6 * layers * length * heads * head_dim (causal); a third more of it when recomputing
    sharding       each micro-batch gathers bfloat16 weights twice and scatters float32 gradients: 8 bytes a weight
    replicas       each micro-batch adds up the float32 gradients of a shard: 2 * 4 bytes a weight of the shard
    tensor         4 sums of bfloat16 activations a layer (6 when recomputing): 2 * 2 bytes a token and width each
    context        keys and values gathered, their gradients scattered, a layer: 2 * 2 * 2 bytes a token and key width
    step           max(compute, sharding + replicas), which overlap, + tensor + context, which do not

Each message takes its bytes * (n - 1) / n over the bandwidth of the slowest link that its n devices share: the node's
where they are in one node, the network's otherwise.
"""

from dataclasses import dataclass

from openafm.model import ModelConfig
from openafm.stage import Parallelism
from openafm.training.losses import CHUNK


@dataclass(frozen=True)
class Device:
    """A kind of device. Bandwidths are one way, for each device."""

    name: str
    memory_gb: float
    tflops: float
    """Dense bfloat16 peak by the data sheet (float16 for the M series)."""
    mfu: float
    """Share of the peak that training of a few billion weights reaches; published runs are between 0.35 and 0.55."""
    per_node: int
    link_gb: float
    """Gigabytes a second to the other devices of a node."""
    network_gb: float
    """Gigabytes a second to other nodes."""
    dollars: float
    """Rent of one for an hour, a usual price of 2025; 0 where nobody rents them."""


DEVICES = {
    device.name.lower(): device
    for device in (
        Device("H100", 80, 989, 0.40, 8, 450, 50, 2.50),
        Device("A100", 80, 312, 0.50, 8, 300, 25, 1.50),
        Device("MI300X", 192, 1307, 0.30, 8, 448, 50, 2.50),
        Device("RTX4090", 24, 165, 0.45, 8, 25, 1.25, 0.40),
        Device("M4Max", 128, 34, 0.35, 1, 0, 0, 0.0),
    )
}
USABLE = 0.9
"""Share of a device's memory that a step may plan with: the rest is for kernels, communication and fragmentation."""


@dataclass(frozen=True)
class Layout:
    """How devices share a step."""

    parallelism: Parallelism
    """Its `shard` is a number, never 0."""
    rows: int
    """Sequences of a micro-batch on each device (or group of devices that share sequences)."""

    def text(self) -> str:
        """`replicate 64, shard 8, recompute`: what is not 1."""
        named = self.parallelism.model_dump().items()
        parts = [name if value is True else f"{name} {value}" for name, value in named if value is True or value > 1]
        return ", ".join(parts) or "one device"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    compute: float
    hidden: float
    """Communication beside computation: sharding and replicas."""
    exposed: float
    """Communication that computation waits for: tensor and context."""

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.compute, self.hidden) + self.exposed


def flops_per_token(config: ModelConfig, length: int, recompute: bool) -> float:
    """Floating-point operations of training on one token."""
    attention = 6 * config.n_layers * length * config.n_heads * config.head_dim
    blocks = 6 * config.projection_parameters + attention
    return blocks * (4 / 3 if recompute else 1) + 6 * config.embedding_parameters


def step_time(config: ModelConfig, layout: Layout, length: int, tokens: int, device: Device) -> StepTime:
    """The model above."""
    p = layout.parallelism
    count = p.replicate * p.shard * p.context * p.tensor
    compute = tokens * flops_per_token(config, length, p.recompute) / (count * device.tflops * 1e12 * device.mfu)
    held = layout.rows * length / p.context  # tokens of a micro-batch on a device
    micro_batches = tokens / (p.replicate * p.shard * layout.rows * length)
    weights = config.parameters / p.tensor
    inner = p.tensor * p.context
    hidden = _seconds(8 * weights, p.shard * p.context, inner * p.shard, device)
    hidden += _seconds(8 * weights / (p.shard * p.context), p.replicate, count, device)
    sums = (6 if p.recompute else 4) * config.n_layers
    exposed = _seconds(sums * 4 * held * config.d_model, p.tensor, p.tensor, device)
    keys = config.n_kv_heads * config.head_dim / p.tensor
    exposed += _seconds(config.n_layers * 8 * layout.rows * length * keys, p.context, inner, device)
    return StepTime(compute, micro_batches * hidden, micro_batches * exposed)


def _seconds(message: float, members: int, span: int, device: Device) -> float:
    """Of `message` bytes among `members` devices, which lie within `span` neighbours."""
    if members == 1:
        return 0.0
    bandwidth = device.link_gb if span <= device.per_node else device.network_gb
    return message * (members - 1) / members / (bandwidth * 1e9)


def layouts(config: ModelConfig, length: int, tokens: int, count: int, device: Device) -> list[Layout]:
    """All sensible layouts of a step on `count` devices, by the model's time; none where they cannot share it."""
    rows = max(1, tokens // length)
    found = []
    for tensor in (1, 2, 4, 8):
        for context in (1, 2, 4, 8, 16):
            inner = tensor * context
            divides = config.n_kv_heads % tensor == config.d_ff % tensor == 0 and length % (2 * context) == 0
            if not divides or tensor > device.per_node or count % inner or rows % (count // inner):
                continue
            found += _of(count // inner, tensor, context, rows, device)
    return sorted(found, key=lambda layout: step_time(config, layout, length, tokens, device).seconds)


def _of(data: int, tensor: int, context: int, rows: int, device: Device) -> list[Layout]:
    """Layouts whose devices hold `data` different sets of rows: sharded over all, or over a node."""
    in_a_node = max(1, device.per_node // (tensor * context))
    shards = {data} | ({in_a_node} if data % in_a_node == 0 else set())
    return [
        Layout(
            Parallelism(replicate=data // shard, shard=shard, tensor=tensor, context=context, recompute=recompute), size
        )
        for shard in sorted(shards)
        for recompute in (False, True)
        for size in (8, 4, 2, 1)
        if (rows // data) % size == 0
    ]


def least_bytes(config: ModelConfig, layout: Layout, length: int) -> float:
    """A step takes at least this on a device: what need not be tried in a dry run.

    A layer keeps for each token the float32 residuals, the norms' results, queries, mixed values, keys and values (the
    gathered ones too), and of the FFN gate, up, SiLU and product, all but the residuals in bfloat16. The loss finds all
    layers' beside the whole output matrix, its bfloat16 copy, its gradient and a part of it, and a chunk of logits.
    """
    p = layout.parallelism
    tokens = layout.rows * length / p.context
    state = 16 * config.parameters / (p.shard * p.context * p.tensor)
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    block = 12 * config.d_model + (8 * config.d_ff + 8 * queries + (2 + 4 * p.context) * keys) / p.tensor
    kept = 4 * config.d_model if p.recompute else block
    whole = (12 if p.shard * p.context > 1 else 8) * config.embedding_parameters
    head = whole + 8 * min(tokens, CHUNK) * config.vocab_size
    return state + tokens * (config.n_layers - 1) * kept + max(tokens * block, tokens * kept + head)

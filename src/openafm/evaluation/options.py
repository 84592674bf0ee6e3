"""Multiple choice: log-probabilities of several continuations of a context that is read once."""

import torch
from torch import Tensor

from openafm.model import Cache, Transformer
from openafm.training.alignment import sequence_log_probs


@torch.inference_mode()
def option_log_probs(model: Transformer, contexts: Tensor, options: Tensor) -> Tensor:
    """log p(option | context) `(batch, choices)` of contexts `(batch, length)` and options `(batch, choices, tokens)`.

    Shorter options are filled with IGNORED at their end. Every context is read once, its options go on from the cache.
    """
    weight, (batch, choices, longest) = model.model.embed_tokens.weight, options.shape
    contexts, targets = contexts.to(weight.device), options.to(weight.device).flatten(0, 1)
    cache = Cache(model.config, batch, contexts.shape[1] + longest, weight.dtype, weight.device)
    first = model.logits(model.hidden(contexts, cache)[:, -1:]).repeat_interleave(choices, 0)
    cache.select(torch.arange(batch, device=weight.device).repeat_interleave(choices))
    rest = model(targets[:, :-1].clamp(min=0), cache) if longest > 1 else first[:, :0]
    return sequence_log_probs(torch.cat([first, rest], 1), targets).view(batch, choices)

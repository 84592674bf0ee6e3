"""Named shapes, from a laptop's nano to AFM's own."""

from openafm.model.config import ModelConfig

_NANO = ModelConfig(
    vocab_size=2048,
    d_model=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    d_ff=384,
    rope_base=500.0,
    max_length=1024,
)
_AFM = ModelConfig(
    vocab_size=49_152, d_model=3072, n_layers=26, n_heads=24, n_kv_heads=8, head_dim=128, d_ff=8064, max_length=32_768
)

PRESETS: dict[str, ModelConfig] = {
    "nano": _NANO,
    "nano-teacher": _NANO.model_copy(update={"d_ff": 1536}),
    "proxy": ModelConfig(vocab_size=49_152, d_model=768, n_layers=12, n_heads=12, n_kv_heads=6, head_dim=64, d_ff=2304),
    "afm-on-device": _AFM,
    "afm-teacher": _AFM.model_copy(update={"d_ff": 23_296}),
}
"""`proxy` is the shape of AFM's learning-rate sweeps; the teacher's FFN width is our choice (6.39B in all)."""

"""Low-rank adapters: `lora` puts them on a model, `store` keeps them in a folder."""

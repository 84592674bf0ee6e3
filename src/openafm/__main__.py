"""`python -m openafm`, also under torchrun: the same verbs."""

from openafm.cli import app

app()

"""The probe: its choice follows from its measurements, and leaves the process its threads."""

from dataclasses import replace

import torch

from openafm.model import Transformer
from openafm.stage import Hardware
from openafm.training import hardware


def test_the_choice_follows_from_the_measurement(monkeypatch):
    threads, during = torch.get_num_threads(), []
    monkeypatch.setattr(hardware, "physical_cores", lambda: threads + 1)
    for single, half, wanted in [(100.0, 110.0, "float32"), (100.0, 130.0, "bfloat16")]:

        def timed(device, pair=(single, half)):
            during.append(torch.get_num_threads())
            return pair

        monkeypatch.setattr(hardware, "_tokens_per_second", timed)
        chosen, measured = hardware.probe()
        assert chosen.precision == wanted and measured["bfloat16_tokens_per_second"] == half
        assert torch.get_num_threads() == threads
    assert during == [threads + 1] * 2


def test_it_measures_something():
    single, half = hardware._tokens_per_second("cpu")
    assert single > 0 and half > 0


def test_a_container_quota_limits_the_threads(tmp_path):
    limits = tmp_path / "cpu.max"
    for text, cpus in [("max 100000", 1e6), ("150000 100000", 1.5), ("20000 100000", 1.0)]:
        limits.write_text(text)
        assert hardware._quota(limits) == cpus
    assert hardware._quota(tmp_path / "absent") == 1e6
    assert 1 <= hardware.physical_cores() <= 4096


def test_only_long_steps_of_plain_decoders_compile(tiny_config, monkeypatch):
    """Nothing is compiled here: a block compiles at its first call, and none is called."""
    long, able = 10**10, Hardware(compile=True)
    model = Transformer(tiny_config)
    assert hardware.compile_blocks(model, 1000, able) == []
    assert hardware.compile_blocks(model, long, replace(able, compile=False)) == []
    assert hardware.compile_blocks(torch.nn.ModuleList([model]), long, able) == []
    blocks = hardware.compile_blocks(model, long, able)
    assert blocks == model.blocks and all(block._compiled_call_impl is not None for block in blocks)
    hardware.plain_blocks(blocks)
    assert all(block._compiled_call_impl is None for block in model.blocks)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert not hardware.can_compile("cpu") and hardware.can_compile("cuda")

"""Damaged and hostile packages and folders are refused by ValueError, whatever was done to them."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.engine.random_models import SHAPE, packed, random_model

from openafm import files
from openafm.engine import NativeEngine, Package, TorchEngine
from openafm.engine.native_engine import missing
from openafm.engine.opening import open_engine
from openafm.engine.package import HEADER, WEIGHTS, header_digest
from openafm.files import digest
from openafm.model.checkpoint import save_model

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def refused_or_runs(folder):
    """Nothing but a ValueError, and no crash of the process."""
    try:
        engine = NativeEngine.load(folder, threads=1)
        engine.logits([5, 6])
    except ValueError:
        return


def signed(folder, header):
    """Write the header with checksums that vouch for whatever the folder holds."""
    if isinstance(header.get("files"), dict):
        for name, entry in header["files"].items():
            if (folder / name).is_file() and isinstance(entry, dict):
                entry["sha256"] = digest(folder / name)
    header["sha256"] = header_digest(header)
    (folder / HEADER).write_text(json.dumps(header))


@pytest.fixture
def copy(package, tmp_path):
    return shutil.copytree(package, tmp_path / "model.afm")


@FEW
@given(data=st.data())
def test_flipped_and_missing_bytes_are_noticed(package, tmp_path_factory, data):
    folder = shutil.copytree(package, tmp_path_factory.mktemp("damaged") / "model.afm")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    old = path.read_bytes()
    at = data.draw(st.integers(0, len(old) - 1))
    if data.draw(st.booleans()):
        new = old[:at]
    else:
        new = old[:at] + bytes([old[at] ^ data.draw(st.integers(1, 255))]) + old[at + 1 :]
    path.write_bytes(new)
    if path.name in (WEIGHTS, "adapter.safetensors", "tokenizer.model", "tokenizer_config.json"):
        with pytest.raises(ValueError):
            NativeEngine.load(folder, threads=1)
    else:  # JSON may say the same in other bytes
        refused_or_runs(folder)
    shutil.rmtree(folder.parent)


def test_large_files_are_verified_piece_by_piece(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 5_000)
    folder = packed(SHAPE, tmp_path / "model.afm", tokenizer, (4, 2, 4, 1))
    path, data = folder / WEIGHTS, (folder / WEIGHTS).read_bytes()
    told = json.loads((folder / HEADER).read_bytes())["files"]
    starts = range(0, len(data), 5_000)
    assert told[WEIGHTS]["pieces"] == [hashlib.sha256(data[at : at + 5_000]).hexdigest() for at in starts]
    assert len(starts) > 3 and all("pieces" not in entry or entry["bytes"] > 5_000 for entry in told.values())
    NativeEngine.load(folder, threads=2)
    for at in (len(data) - 1, 12_345):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged .the checksum of piece {at // 5_000 + 1} "):
            NativeEngine.load(folder)
        with pytest.raises(ValueError, match=f"{WEIGHTS} is missing or damaged"):
            TorchEngine.load(folder)
    path.write_bytes(data[: starts[-1]])
    with pytest.raises(ValueError, match="missing or damaged"):
        NativeEngine.load(folder)


@pytest.mark.parametrize("change", [{"head_dim": 15}, {"vocab_size": 299}, {"d_model": 31}, {"n_kv_heads": 3}])
def test_a_header_of_another_shape_is_refused_by_either_engine(copy, change):
    header = json.loads((copy / HEADER).read_bytes())
    header["config"] |= change
    signed(copy, header)
    for choice in ("", "torch"):  # a shape that the native engine does not run goes to torch
        with pytest.raises(ValueError):
            open_engine(copy, choice)


@pytest.mark.parametrize("change", [{"group": 10**30}, {"group": 0}, {"shape": [16, -32]}, {"shape": [10**30, 32]}])
def test_a_layer_of_impossible_numbers_is_refused(copy, change):
    header = json.loads((copy / HEADER).read_bytes())
    header["layers"]["model.layers.0.self_attn.k_proj"] |= change
    signed(copy, header)
    with pytest.raises(ValueError, match="does not describe a package"):
        Package(copy)


values = st.one_of(
    st.integers(-(10**20), 10**20),
    st.sampled_from([0, 1, 3, 16, 2**31, 2**63, 1e300, float("nan"), "x", "", None, [], {}]),
    st.lists(st.integers(-2, 2**40), max_size=3), st.booleans(), st.text(max_size=5),
)  # fmt: skip


@FEW
@given(data=st.data(), value=values)
def test_headers_that_lie(package, tmp_path_factory, data, value):
    folder = shutil.copytree(package, tmp_path_factory.mktemp("lying") / "model.afm")
    header = json.loads((folder / HEADER).read_bytes())
    place = header
    while True:  # somewhere in the tree
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = value
    else:
        del place[key]
    signed(folder, header)
    refused_or_runs(folder)
    shutil.rmtree(folder.parent)


@FEW
@given(data=st.data())
def test_tensors_that_do_not_fit(package, tmp_path_factory, data):
    folder = shutil.copytree(package, tmp_path_factory.mktemp("unfit") / "model.afm")
    tensors = load_file(folder / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    old = tensors.pop(name)
    if data.draw(st.booleans()):
        dtype = data.draw(st.sampled_from([np.uint8, np.int8, np.float16, np.float32, np.float64, np.int64]))
        shape = data.draw(st.lists(st.integers(0, 40), min_size=0, max_size=3))
        fits = (old.dtype, old.shape) == (np.dtype(dtype), tuple(shape))
        tensors[name] = np.zeros(shape, dtype)
    else:
        fits = False
    save_file(tensors, folder / WEIGHTS)
    signed(folder, json.loads((folder / HEADER).read_bytes()))
    if not fits:
        with pytest.raises(ValueError):
            NativeEngine.load(folder, threads=1)
    shutil.rmtree(folder.parent)


def test_files_outside_the_package_are_not_touched(copy):
    header = json.loads((copy / HEADER).read_bytes())
    header["files"]["../../secret"] = {"bytes": 1, "sha256": "0" * 64}
    signed(copy, header)
    with pytest.raises(ValueError, match="outside the package"):
        Package(copy)


@FEW
@given(data=st.data())
def test_model_folders(tokenizer, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("folder")
    save_model(random_model(SHAPE), folder, tokenizer)
    path = folder / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    old = path.read_bytes()
    at = data.draw(st.integers(0, min(len(old) - 1, 4000)))
    new = old[:at] if data.draw(st.booleans()) else old[:at] + data.draw(st.binary(max_size=6)) + old[at + 1 :]
    path.write_bytes(new)
    refused_or_runs(folder)
    shutil.rmtree(folder)

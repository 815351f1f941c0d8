"""Files of weights that are damaged, or written by somebody who means harm.

What is read is what was meant, or an error of the project's own names the file: no other exception,
no memory that the file does not fill.
"""

import io
import json
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from hypothesis import example, given

from egmae_jax.core.files import DamagedFileError
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.models import timm, timm_names, transfer
from egmae_jax.models import weights as model_weights
from egmae_jax.models.init import initial_variables
from egmae_jax.models.timm import CheckpointError
from egmae_jax.models.transfer import load_params
from egmae_jax.run import default_config
from egmae_jax.training import pretrain
from tests.damage import damaged, either_right_or, little_memory

# What the libraries say of odd files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


TENSORS = {
    "stem.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "stem.0.bias": np.arange(5, dtype=np.float16),
    "count": np.array(7),
}


def lying(header, data=b"\0" * 64):
    """A safetensors file with that header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def tensor(**changes):
    return {"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}}


@given(damaged(safetensors.numpy.save(TENSORS)))
@example(lying(tensor(dtype="F8_E4M3", shape=[64])))  # numpy has no such type
@example(lying(tensor(shape=[1] * 70 + [16])))  # nor so many dimensions
@example(lying(tensor(shape=[2**40, 2**40])))
@example(lying(tensor(shape=[0, 2**60], data_offsets=[0, 0]), b""))
@example(lying(tensor(data_offsets=[0, 10**15])))
@example(lying(tensor() | {"y": tensor()["x"]}))  # two tensors in one place
@example(lying(b"[" * 100_000))
@example(pickle.dumps({"x": [1.0]}))
@example(struct.pack("<Q", 2**63) + b"{}")
def test_safetensors_are_read_or_refused(file, content):
    path = file.with_name("weights.safetensors")
    path.write_bytes(content)
    with little_memory():
        with either_right_or(CheckpointError, path):
            assert all(isinstance(x, np.ndarray) for x in model_weights.read(path).values())
        with either_right_or(DamagedFileError, path):
            load_params(path)


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array=None, *, descr="<f4", shape=(2,), version=b"\x01\x00", data=b"\0" * 8):
    """An array as npy, or a header that says what it likes."""
    if array is not None:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}\n".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


LIES = {
    "10^15 elements": npz([("x.npy", npy(shape=(10**15,)))]),
    "sizes that overflow": npz([("x.npy", npy(shape=(2**62, 2**62)))]),
    "one fewer than there is": npz([("x.npy", npy(shape=(1,)))]),
    "an enormous item": npz([("x.npy", npy(descr="<U400000000", shape=(1000,)))]),
    "objects": npz([("x.npy", npy(descr="|O"))]),
    "a pickle": npz([("x.npy", b"\x80\x04K\x01.")]),
    "no array": npz([("x.txt", b"1, 2")]),
    "code for a header": npz([("x.npy", npy(descr="__import__('os').system('false')"))]),
    "two of one name": npz([("x.npy", npy()), ("x.npy", npy(np.ones(2)))]),
    "a bomb": npz([("x.npy", npy(np.zeros(3 * 10**7, np.uint8)))], zipfile.ZIP_DEFLATED),
    "another version": npz([("x.npy", npy(version=b"\x09\x00"))]),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("lie", LIES)
def test_an_npz_that_lies_is_refused_at_once(tmp_path, lie):
    path = tmp_path / "weights.npz"
    path.write_bytes(LIES[lie])
    with little_memory(), pytest.raises(CheckpointError, match=r"weights\.npz is not an npz"):
        model_weights.read(path)
    with little_memory(), pytest.raises(DamagedFileError, match=r"weights\.npz is damaged"):
        load_predictions(path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("features.0.bias", np.full(64, np.nan), "NaN, infinite or .* features_0/bias"),
        ("features.0.bias", np.full(64, 1e300), "too large for float32"),
        ("features.0.bias", np.array(["x"] * 64), "dtype: features.0.bias is <U1"),
        ("features.0.bias", np.zeros((0,)), r"shape: features.0.bias is \(0,\)"),
        ("classifier.1.bias", np.zeros(()), r"classifier\.1\.(weight|bias)"),
        ("classifier.1.bias", np.zeros(10**6), r"classifier\.1\.(weight|bias)"),
    ],
)
def test_weights_of_wrong_values_types_and_sizes_are_named(tmp_path, name, values, message):
    expected = timm_names.expected_tensors("squeezenet1_1", 2)
    tensors = {key: np.full(shape, 0.5, np.float32) for key, (_, shape, _) in expected.items()}
    np.savez(tmp_path / "w.npz", **{**tensors, name: values})
    with pytest.raises(CheckpointError, match=rf"(?s)w\.npz .*{message}"):
        timm.load(tmp_path / "w.npz", "squeezenet1_1")


@pytest.mark.parametrize(
    ("name", "leaf", "message"),
    [
        ("encoder/stem/conv/bias", np.full(40, np.nan, np.float32), "not finite float32"),
        ("decoder/predict/bias", None, "missing: decoder/predict/bias"),
        ("more", np.zeros(3, np.float32), "extra: more"),
    ],
)
def test_an_autoencoder_of_another_network_is_damaged(tmp_path, name, leaf, message):
    config = default_config.get_config()
    config.model.name, config.decoder.dim = "convnext_atto", 8
    model = pretrain.create_autoencoder(config)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    mask = jax.ShapeDtypeStruct((1, 1, 1), np.float32)
    params = initial_variables(model, 0, image, mask)["params"]
    flat = {**traverse_util.flatten_dict(params, sep="/"), name: leaf}
    path = tmp_path / "autoencoder.safetensors"
    safetensors.numpy.save_file({key: x for key, x in flat.items() if x is not None}, path)
    with pytest.raises(
        DamagedFileError, match=rf"(?s)autoencoder\.safetensors is damaged.*{message}"
    ):
        transfer.load_autoencoder(path, model)

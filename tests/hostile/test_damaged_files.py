"""Files of a run and weights that are damaged, or written by somebody who means harm.

What is read is what was meant, or an error of the project's own names the file: no other exception,
no memory that the file does not fill.
"""

import contextlib
import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from hypothesis import example, given
from hypothesis import strategies as st

from egmae_jax.core.files import (
    DamagedFileError,
    read_json,
    read_npz,
    read_sealed,
    write_json,
    write_sealed,
)
from egmae_jax.data import splits
from egmae_jax.evaluation.predictions import Predictions, load_predictions
from egmae_jax.models import timm, timm_names
from egmae_jax.models import weights as model_weights
from egmae_jax.models.init import initial_variables
from egmae_jax.models.timm import CheckpointError
from egmae_jax.run import default_config
from egmae_jax.training import layer_selection, pretrain
from egmae_jax.training.checkpoint import Checkpoints, load_params

# What the libraries say of odd files.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)


def damaged(whole, max_bytes=4):
    """The bytes with a few others in some places, or cut, or with something behind them."""
    places = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    changed = st.lists(places, min_size=1, max_size=max_bytes)
    cut = st.integers(0, len(whole) - 1)

    def change(edits):
        content = bytearray(whole)
        for place, value in edits:
            content[place] = value
        return bytes(content)

    return changed.map(change) | cut.map(lambda n: whole[:n]) | st.binary(max_size=64)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file that examples write again and again, and errors must name."""
    return tmp_path_factory.mktemp("hostile") / "file.x"


@contextlib.contextmanager
def either_right_or(error, file):
    """What the block does is right, or it raises `error`, which names the file."""
    try:
        yield
    except error as raised:
        assert str(file) in str(raised)  # noqa: PT017 (either outcome is right)


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


# --- Weights -----------------------------------------------------------------------------------

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


def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


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


@given(damaged(saved(**TENSORS)))
def test_an_npz_is_read_or_refused(file, content):
    path = file.with_name("weights.npz")
    path.write_bytes(content)
    with little_memory(), either_right_or(CheckpointError, path):
        tensors = model_weights.read(path)
        assert all(tensors[name].dtype.kind in "fiu" for name in TENSORS.keys() & tensors.keys())


def test_a_compressed_npz_of_weights_is_read(tmp_path):
    x = np.random.default_rng(0).standard_normal(1000, np.float32)
    np.savez_compressed(tmp_path / "weights.npz", x=x, y=np.zeros((0, 3)))
    arrays = read_npz(tmp_path / "weights.npz")
    np.testing.assert_array_equal(arrays["x"], x)
    assert arrays["y"].shape == (0, 3)


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
        pretrain.load_autoencoder(path, model)


# --- Checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("record", ["[" * 100_000, "7", '{"manifest.ocdbt": 7}', "\udcff"])
def test_a_checkpoint_whose_record_is_something_else_is_damaged(tmp_path, record):
    tree = {"x": np.arange(4, dtype=np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {"epoch": 1})
        (tmp_path / "1.sha256.json").write_bytes(record.encode("utf-8", "surrogatepass"))
        with pytest.raises(DamagedFileError, match="is damaged"):
            checkpoints.restore(tree)


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((2, 2), np.float32)},
        {"y": np.zeros(4, np.float32)},
        {"x": {"z": np.zeros(4, np.float32)}},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_arrays_is_damaged(tmp_path, other):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": np.arange(4, dtype=np.float32)}, {})
        with pytest.raises(DamagedFileError, match="1 is damaged"):
            checkpoints.restore(other)


# --- JSON --------------------------------------------------------------------------------------


@given(JSON.map(lambda x: json.dumps(x).encode()) | st.binary(max_size=40))
@example(b"[" * 100_000)
@example(b"9" * 5000)
@example(b'{"loss": NaN}')
@example(b"\xff\xfe{}")
def test_json_is_of_the_kind_that_is_asked_for_or_damaged(file, content):
    file.write_bytes(content)
    for kind in (dict, list):
        with either_right_or(DamagedFileError, file):
            assert type(read_json(file, kind=kind)) is kind
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged"):
        read_sealed(file)


def test_a_folder_in_a_files_place_is_damaged(tmp_path):
    with pytest.raises(DamagedFileError, match="directory"):
        read_json(tmp_path)
    with pytest.raises(DamagedFileError, match="is damaged"):
        load_params(tmp_path)


def test_a_path_that_is_no_text_comes_back_from_json(tmp_path):
    write_json(tmp_path / "x.json", {"dir": "m\udce4rz", "ok": "März"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"dir": "m\udce4rz", "ok": "März"}


@pytest.mark.parametrize("content", [{}, [7], [{}], [{"file": "../1.png"}], [{"file": "/a/1.png"}]])
def test_splits_json_of_other_content_is_damaged(file, content):
    row = {"file": "1.png", "label": "cat", "split": "train", "group": 0, "sha256": "0" * 64}
    write_json(file, content if content in ({}, [7], [{}]) else [row | content[0]])
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged .*restore it"):
        splits.read(file)


@pytest.mark.parametrize("layers", [None, [{"layer": x, "trains": True} for x in "abc"]])
def test_layers_json_decides_for_every_layer_or_is_damaged(file, layers):
    write_sealed(file, {"layers": layers})
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged"):
        layer_selection.read_report(file, ["a", "b"])


# --- Predictions -------------------------------------------------------------------------------

PREDICTIONS = Predictions(
    np.array(["a", "b"]), np.array([0, 1]), np.eye(2, dtype=np.float32), np.array([7, 7])
)


@pytest.mark.parametrize(
    "changes",
    [
        {"probabilities": np.ones(2)},
        {"probabilities": np.full((2, 2), np.nan)},
        {"probabilities": np.array([[{}, 1], [1, 1]], object)},
    ],
    ids=str,
)
def test_predictions_of_wrong_types_or_sizes_are_damaged(file, changes):
    file.write_bytes(saved(**{**PREDICTIONS._asdict(), **changes}))
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged"):
        load_predictions(file)


@given(damaged(saved(**PREDICTIONS._asdict())))
def test_predictions_are_what_was_saved_or_damaged(file, content):
    file.write_bytes(content)
    with little_memory(), either_right_or(DamagedFileError, file):
        for values, expected in zip(load_predictions(file), PREDICTIONS, strict=True):
            np.testing.assert_array_equal(values, expected)

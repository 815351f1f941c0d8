"""Files of weights in timm's names and in other libraries', without torch."""

import re
import shutil

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from egmae_jax import models
from egmae_jax.models import timm, timm_names
from egmae_jax.models import weights as model_weights
from egmae_jax.models.timm import CheckpointError
from tests.models.names import LIBRARIES, in_names_of
from tests.tiny import flatten


def tensors_of(name, classes=3):
    """Random tensors of a model in timm's names; tests/parity holds these to timm's own."""
    rng = np.random.default_rng(0)
    expected = timm_names.expected_tensors(name, classes)
    return {key: rng.standard_normal(shape, np.float32) for key, (_, shape, _) in expected.items()}


def write(tensors, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def atto_tensors():
    """Do not change; copy."""
    return tensors_of("convnext_atto")


@pytest.fixture(scope="module")
def atto_file(atto_tensors, tmp_path_factory):
    return write(atto_tensors, tmp_path_factory.mktemp("atto") / "atto.safetensors")


def assert_same(variables, others):
    variables, others = flatten(variables), flatten(others)
    assert variables.keys() == others.keys()
    for path in variables:
        np.testing.assert_array_equal(variables[path], others[path], err_msg=path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network: a request fails the test."""

    def no_network(*args, **kwargs):
        raise AssertionError("asked the hub although the file is in the cache")

    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    return folder


def put_in_cache(hub, repo_id, tensors):
    """The hub client's layout: blobs by hash, snapshots that link to them, refs by name."""
    commit, blob = "0123456789abcdef0123456789abcdef01234567", "feedbeef" * 8
    repository = hub / f"models--{repo_id.replace('/', '--')}"
    write(tensors, repository / "blobs" / blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit / "model.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(repository / "blobs" / blob)
    return snapshot


# Values


def test_what_is_saved_is_what_was_loaded_bit_for_bit(atto_file, atto_tensors, tmp_path):
    variables = timm.load(atto_file, "convnext_atto")
    timm.save(variables, tmp_path / "again.safetensors", "convnext_atto")
    saved = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    assert saved.keys() == atto_tensors.keys()
    for key, tensor in atto_tensors.items():
        assert saved[key].dtype == np.float32
        assert saved[key].shape == tensor.shape, key
        assert saved[key].tobytes() == tensor.tobytes(), key
    assert_same(timm.load(tmp_path / "again.safetensors", "convnext_atto"), variables)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_types_are_read_as_float32(dtype, atto_tensors, tmp_path):
    tensors = {key: x.astype(dtype) for key, x in atto_tensors.items()}
    params = timm.load(write(tensors, tmp_path / "model.safetensors"), "convnext_atto")["params"]
    assert {x.dtype for x in flatten(params).values()} == {np.dtype(np.float32)}
    expected = tensors["head.fc.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(params["head"]["fc"]["kernel"], expected)


# What does not fit


def test_all_tensors_that_do_not_fit_are_named_at_once(atto_tensors, tmp_path):
    tensors = dict(atto_tensors)
    del tensors["stem.0.weight"], tensors["stages.3.blocks.1.gamma"]
    tensors["head.l2.weight"] = np.zeros((2, 3), np.float32)
    tensors["stages.0.blocks.0.conv_dw.weight"] = np.zeros((40, 1, 5, 5), np.float32)
    tensors["stages.1.blocks.0.norm.bias"] = np.zeros(80, np.int64)
    path = write(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        timm.load(path, "convnext_atto")
    message = str(error.value)
    assert message.startswith(f"{path} does not fit convnext_atto; 5 tensors differ:")
    assert set(message.splitlines()[1:]) == {
        "  missing: stem.0.weight (40, 3, 4, 4)",
        "  missing: stages.3.blocks.1.gamma (320,)",
        "  extra: head.l2.weight (2, 3)",
        "  shape: stages.0.blocks.0.conv_dw.weight is (40, 1, 5, 5), the model's is (40, 1, 7, 7)",
        "  dtype: stages.1.blocks.0.norm.bias is int64, not a floating-point type",
    }


def test_save_names_all_leaves_that_do_not_fit_and_writes_nothing(atto_file, tmp_path):
    params = flatten(timm.load(atto_file, "convnext_atto")["params"])
    del params["stem/conv/bias"]
    params["decoder/embed/kernel"] = np.zeros((2, 2), np.float32)
    params["stages_0/blocks_1/gamma"] = np.zeros(41, np.float32)
    with pytest.raises(CheckpointError) as error:
        timm.save(
            {"params": traverse_util.unflatten_dict(params, sep="/")},
            tmp_path / "model.safetensors",
            "convnext_atto",
        )
    message = str(error.value)
    assert "missing: stem/conv/bias" in message
    assert "extra: decoder/embed/kernel (2, 2)" in message
    assert (
        "shape: stages_0/blocks_1/gamma as stages.0.blocks.1.gamma is (41,), the model's is (40,)"
    ) in message
    assert list(tmp_path.iterdir()) == []


# Where weights come from


def test_a_file_without_classifier_will_do_where_none_is_needed(atto_file, tmp_path):
    whole = model_weights.read(atto_file)
    tensors = {key: x for key, x in whole.items() if not key.startswith("head.fc.")}
    assert len(tensors) == len(whole) - 2
    safetensors.numpy.save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors differ:\n  missing: head\.fc"):
        timm.load(tmp_path / "mine.safetensors", "convnext_atto")
    head = timm.load(tmp_path / "mine.safetensors", "convnext_atto", classifier=False)["params"][
        "head"
    ]
    assert not head["fc"]["kernel"].any()
    np.testing.assert_array_equal(head["norm"]["scale"], whole["head.norm.weight"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pth", "a.pt", "model_best.pth.tar"])
def test_pickles_are_refused_with_the_way_out(name, tmp_path):
    (tmp_path / name).write_bytes(b"not even read")
    with pytest.raises(CheckpointError, match=r"pickle.*safetensors\.torch\.save_file"):
        timm.load(tmp_path / name)


def test_a_folder_stands_for_its_model_safetensors(atto_file, tmp_path):
    shutil.copy(atto_file, tmp_path / "model.safetensors")
    expected = timm.load(atto_file, "convnext_atto")
    assert_same(timm.load(str(tmp_path), "convnext_atto"), expected)


def test_a_folder_without_weights_is_named(hub, tmp_path):
    with pytest.raises(model_weights.MissingWeightsError, match=r"no file .*model\.safetensors"):
        timm.load(tmp_path)


def test_an_absent_file_is_named(hub, tmp_path):
    with pytest.raises(
        model_weights.MissingWeightsError, match=re.escape(str(tmp_path / "absent.safetensors"))
    ):
        timm.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.999])
def test_a_truncated_file_is_named(share, atto_file, tmp_path):
    whole = atto_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is not a safetensors file")):
        timm.load(path, "convnext_atto")


def test_the_default_weights_come_from_the_hub_cache_without_network(hub):
    snapshot = put_in_cache(hub, "timm/convnext_tiny.fb_in1k", tensors_of("convnext_tiny", 7))
    assert models.default_weights("convnext_tiny") == "timm/convnext_tiny.fb_in1k"
    assert model_weights.locate("timm/convnext_tiny.fb_in1k") == snapshot
    assert_same(timm.load(), timm.load(snapshot))


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_hub_ids_are_found_in_the_cache_by_timms_prefixes_too(prefix, hub, atto_tensors):
    snapshot = put_in_cache(hub, "someone/convnext_atto.mine", atto_tensors)
    assert model_weights.locate(f"{prefix}someone/convnext_atto.mine") == snapshot


def test_a_folder_of_the_hub_ids_name_comes_first(hub, atto_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm" / "mine").mkdir(parents=True)
    shutil.copy(atto_file, tmp_path / "timm" / "mine" / "model.safetensors")
    assert model_weights.locate("timm/mine").samefile(
        tmp_path / "timm" / "mine" / "model.safetensors"
    )


def test_a_connection_that_breaks_says_how_to_get_the_weights(hub, monkeypatch):
    def broken(*args, **kwargs):
        try:
            raise ConnectionError("no route")
        except ConnectionError as error:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache") from error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    message = r"ConnectionError: no route.*hf download timm/some_model.*give its path"
    with pytest.raises(model_weights.MissingWeightsError, match=message):
        timm.load("timm/some_model")


def test_a_hub_id_that_is_not_cached_is_fetched(hub, atto_file, monkeypatch):
    asked = []

    def download(*args):
        asked.append(args)
        return str(atto_file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert model_weights.locate("timm/convnext_atto.d2_in1k") == atto_file
    assert asked == [("timm/convnext_atto.d2_in1k", "model.safetensors")]


# Other files and other models


@pytest.fixture(scope="module")
def squeezenet():
    """SqueezeNet's variables and the same in torchvision's names."""
    tensors = tensors_of("squeezenet1_1")
    return timm.convert(tensors, "squeezenet1_1", "memory"), tensors


def test_an_npz_file_is_read_as_well(squeezenet, tmp_path):
    variables, tensors = squeezenet
    params = variables["params"]
    np.savez_compressed(tmp_path / "model.npz", **tensors)
    assert_same(timm.load(tmp_path / "model.npz", "squeezenet1_1"), variables)
    kernel = params["head"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["classifier.1.weight"][:, :, 0, 0].T)
    fire = params["features_12"]["expand3x3"]["kernel"]
    assert fire[2, 1, 5, 7] == tensors["features.12.expand3x3.weight"][7, 5, 2, 1]


def test_weights_that_are_only_a_pickle_on_the_web_say_how_to_convert_it():
    with pytest.raises(model_weights.MissingWeightsError) as error:
        timm.load(models.default_weights("squeezenet1_1"), "squeezenet1_1")
    code = re.search(r'python -c "(.*)"', str(error.value))[1]
    compile(code, "command", "exec")
    assert "squeezenet1_1-b8a52dc0.pth'" in code
    assert "path of squeezenet1_1.safetensors" in str(error.value)


def test_batch_norm_is_read_with_its_statistics_and_written_with_a_counter(tmp_path):
    tensors = tensors_of("asff_resnet18")
    variables = timm.convert(tensors, "asff_resnet18", "memory")
    norm, statistics = (
        variables[collection]["layer2_0"]["downsample"]["bn"]
        for collection in ("params", "batch_stats")
    )
    assert (norm.keys(), statistics.keys()) == ({"scale", "bias"}, {"mean", "var"})
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for leaf, value in (norm | statistics).items():
        np.testing.assert_array_equal(value, tensors[f"layer2.0.downsample.1.{names[leaf]}"])
    timm.save(variables, tmp_path / "a.safetensors", "asff_resnet18")
    saved = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    counters = {key for key in saved if key.endswith("num_batches_tracked")}
    assert len(counters) == 20 + 2
    assert {(saved[k].dtype, saved[k].shape) for k in counters} == {(np.dtype(np.int64), ())}
    assert saved.keys() - counters == tensors.keys()
    assert_same(timm.load(tmp_path / "a.safetensors", "asff_resnet18"), variables)
    with pytest.raises(CheckpointError, match=r"extra: fusion\.fc1\.bias"):
        timm.load(tmp_path / "a.safetensors", "resnet18")


# Names of other libraries, and messages


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_other_names_of_a_convnext_are_converted_and_the_log_says_so(
    library, name, tmp_path, caplog
):
    tensors = tensors_of(name)
    theirs = in_names_of(library, tensors)
    if name == "convnextv2_atto":
        theirs = {key.replace("convnext.", "convnextv2."): x for key, x in theirs.items()}
    assert not theirs.keys() & tensors.keys()
    path = write(theirs, tmp_path / "theirs.safetensors")
    with caplog.at_level("INFO", logger="egmae_jax"):
        variables = timm.load(path, name)
    assert_same(variables, timm.convert(tensors, name, "timm's"))
    assert f"has {library} names of its tensors" in caplog.text


def test_a_backbone_of_hugging_faces_has_no_name_before(atto_tensors):
    theirs = in_names_of("Hugging Face's", atto_tensors)
    theirs = {key.removeprefix("convnext."): x for key, x in theirs.items()}
    variables = timm.convert(theirs, "convnext_atto", "theirs")
    assert_same(variables, timm.convert(atto_tensors, "convnext_atto", "timm's"))


def test_at_most_ten_tensors_are_named_some_of_each_kind():
    tensors = tensors_of("resnet18")
    count = len(tensors)
    tensors = {f"{key}_": x for key, x in tensors.items()} | {"fc.bias": np.zeros(3, np.float32)}
    tensors["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    with pytest.raises(CheckpointError) as error:
        timm.convert(tensors, "resnet18", "mine")
    first, *lines = str(error.value).splitlines()
    missing, extra = count - 2, count
    assert first == f"mine does not fit resnet18; {missing + extra + 1} tensors differ:"
    assert [line.split(":")[0].strip() for line in lines] == [
        *["missing"] * 3,
        f"and {missing - 3} more missing",
        *["extra"] * 3,
        f"and {extra - 3} more extra",
        "shape",
    ]


def test_sparse_pretraining_of_version_two_is_refused_by_name():
    tensors = {"encoder.stages.0.0.dwconv.kernel": np.zeros((49, 40), np.float32)}
    with pytest.raises(CheckpointError, match=r"sparse pre-training \(FCMAE\).*timm/convnextv2"):
        timm.convert(tensors, "convnextv2_atto", "mine")

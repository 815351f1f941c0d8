"""timm checkpoints without torch: files of timm's names and shapes, written out here by hand."""

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

ATTO = ((2, 2, 6, 2), (40, 80, 160, 320))
TINY = ((3, 3, 9, 3), (96, 192, 384, 768))


def timm_shapes(depths, dims, classes, *, conv_mlp):
    """{timm's key: shape} of a ConvNeXt; the small ones have 1x1 convolutions for linear layers."""
    shapes = {
        "stem.0.weight": (dims[0], 3, 4, 4),
        "stem.0.bias": (dims[0],),
        "stem.1.weight": (dims[0],),
        "stem.1.bias": (dims[0],),
        "head.norm.weight": (dims[-1],),
        "head.norm.bias": (dims[-1],),
        "head.fc.weight": (classes, dims[-1]),
        "head.fc.bias": (classes,),
    }
    ones = (1, 1) if conv_mlp else ()
    for s, (depth, d) in enumerate(zip(depths, dims, strict=True)):
        if s:
            below = dims[s - 1]
            shapes[f"stages.{s}.downsample.0.weight"] = (below,)
            shapes[f"stages.{s}.downsample.0.bias"] = (below,)
            shapes[f"stages.{s}.downsample.1.weight"] = (d, below, 2, 2)
            shapes[f"stages.{s}.downsample.1.bias"] = (d,)
        for b in range(depth):
            block = f"stages.{s}.blocks.{b}"
            shapes[f"{block}.gamma"] = (d,)
            shapes[f"{block}.conv_dw.weight"] = (d, 1, 7, 7)
            shapes[f"{block}.conv_dw.bias"] = (d,)
            shapes[f"{block}.norm.weight"] = (d,)
            shapes[f"{block}.norm.bias"] = (d,)
            shapes[f"{block}.mlp.fc1.weight"] = (4 * d, d, *ones)
            shapes[f"{block}.mlp.fc1.bias"] = (4 * d,)
            shapes[f"{block}.mlp.fc2.weight"] = (d, 4 * d, *ones)
            shapes[f"{block}.mlp.fc2.bias"] = (d,)
    return shapes


def random_tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def write(tensors, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def atto_tensors():
    """Do not change; copy."""
    return random_tensors(timm_shapes(*ATTO, 3, conv_mlp=True))


@pytest.fixture(scope="module")
def atto_file(atto_tensors, tmp_path_factory):
    return write(atto_tensors, tmp_path_factory.mktemp("atto") / "atto.safetensors")


@pytest.fixture(scope="module")
def tiny_tensors():
    return random_tensors(timm_shapes(*TINY, 7, conv_mlp=False))


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


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


# Values and layouts


def check_layouts(variables, tensors, squeeze):
    """Every kind of leaf against its definition, index by index where axes move."""
    assert variables.keys() == {"params"}
    params = variables["params"]
    assert all(x.dtype == np.float32 for x in flatten(params).values())
    np.testing.assert_array_equal(
        params["stem"]["conv"]["kernel"], np.einsum("oihw->hwio", tensors["stem.0.weight"])
    )
    np.testing.assert_array_equal(params["stem"]["norm"]["scale"], tensors["stem.1.weight"])
    np.testing.assert_array_equal(params["stem"]["norm"]["bias"], tensors["stem.1.bias"])
    stage = params["stages_2"]
    np.testing.assert_array_equal(
        stage["downsample"]["conv"]["kernel"],
        np.einsum("oihw->hwio", tensors["stages.2.downsample.1.weight"]),
    )
    np.testing.assert_array_equal(
        stage["downsample"]["norm"]["scale"], tensors["stages.2.downsample.0.weight"]
    )
    block, key = stage["blocks_5"], "stages.2.blocks.5."
    np.testing.assert_array_equal(block["gamma"], tensors[key + "gamma"])
    kernel, weight = block["conv_dw"]["kernel"], tensors[key + "conv_dw.weight"]
    assert kernel.shape == (7, 7, 1, weight.shape[0])
    assert kernel[1, 5, 0, 17] == weight[17, 0, 1, 5]
    np.testing.assert_array_equal(kernel[:, :, 0], weight[:, 0].transpose(1, 2, 0))
    for layer in ("fc1", "fc2"):
        np.testing.assert_array_equal(
            block[layer]["kernel"], squeeze(tensors[f"{key}mlp.{layer}.weight"]).T
        )
        np.testing.assert_array_equal(block[layer]["bias"], tensors[f"{key}mlp.{layer}.bias"])
    np.testing.assert_array_equal(block["norm"]["bias"], tensors[key + "norm.bias"])
    head = params["head"]
    np.testing.assert_array_equal(head["norm"]["scale"], tensors["head.norm.weight"])
    np.testing.assert_array_equal(head["fc"]["kernel"], tensors["head.fc.weight"].T)
    np.testing.assert_array_equal(head["fc"]["bias"], tensors["head.fc.bias"])


def test_a_model_with_convolutions_for_linear_layers_is_read_leaf_by_leaf(atto_file, atto_tensors):
    variables = timm.load(atto_file, "convnext_atto")
    assert len(flatten(variables)) == len(atto_tensors)
    check_layouts(variables, atto_tensors, lambda x: x[:, :, 0, 0])


def test_a_model_with_linear_layers_is_read_leaf_by_leaf(tiny_tensors, tmp_path):
    variables = timm.load(write(tiny_tensors, tmp_path / "tiny.safetensors"))
    assert len(flatten(variables)) == len(tiny_tensors)
    check_layouts(variables, tiny_tensors, lambda x: x)


@pytest.mark.parametrize(
    ("name", "depths", "dims", "conv_mlp"),
    [
        ("convnext_nano", (2, 2, 8, 2), (80, 160, 320, 640), True),
        ("convnext_small", (3, 3, 27, 3), (96, 192, 384, 768), False),
    ],
)
def test_names_and_shapes_are_timms(name, depths, dims, conv_mlp):
    ours = {key: shape for key, (_, shape, _) in timm_names.expected_tensors(name, 3).items()}
    assert ours == timm_shapes(depths, dims, 3, conv_mlp=conv_mlp)


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


def test_a_checkpoint_of_another_model_is_refused(atto_file):
    with pytest.raises(CheckpointError, match=r"stem\.0\.weight is \(40, 3, 4, 4\), .*\(48, 3, 4"):
        timm.load(atto_file, "convnext_femto")


def test_a_linear_layer_is_not_taken_for_a_convolution(atto_tensors, tmp_path):
    tensors = dict(atto_tensors)
    key = "stages.0.blocks.0.mlp.fc1.weight"
    tensors[key] = tensors[key][:, :, 0, 0]
    path = write(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(f"{key} is (160, 40), ")):
        timm.load(path, "convnext_atto")


def test_a_checkpoint_without_a_head_names_all_four_tensors(atto_tensors, tmp_path):
    tensors = {key: x for key, x in atto_tensors.items() if not key.startswith("head.")}
    path = write(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        timm.load(path, "convnext_atto")
    missing = re.findall(r"missing: (\S+)", str(error.value))
    assert set(missing) == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}


def test_a_wrong_size_of_the_classifiers_kernel_is_found(atto_tensors, tmp_path):
    tensors = {**atto_tensors, "head.fc.weight": np.zeros((4, 320), np.float32)}
    path = write(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight is \(4, 320\), .*\(3, 320\)"):
        timm.load(path, "convnext_atto")


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
        "shape: stages_0/blocks_1/gamma as stages.0.blocks.1.gamma is (41,), not (40,)" in message
    )
    assert list(tmp_path.iterdir()) == []


# Where weights come from


def test_a_prefix_of_all_names_is_told(atto_file, tmp_path):
    tensors = {f"model.{key}": x for key, x in model_weights.read(atto_file).items()}
    safetensors.numpy.save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(
        CheckpointError, match=r"names that begin with 'model\.': save them without"
    ):
        timm.load(tmp_path / "mine.safetensors", "convnext_atto")


def test_a_file_without_classifier_will_do_where_none_is_needed(atto_file, tmp_path):
    whole = model_weights.read(atto_file)
    tensors = {key: x for key, x in whole.items() if not key.startswith("head.fc.")}
    assert len(tensors) == len(whole) - 2
    safetensors.numpy.save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors differ:\n  missing: head\.fc"):
        timm.load(tmp_path / "mine.safetensors", "convnext_atto")
    found = timm.load(tmp_path / "mine.safetensors", "convnext_atto", classifier=False)
    assert not found["params"]["head"]["fc"]["kernel"].any()
    expected = timm.load(atto_file, "convnext_atto", classifier=False)
    assert expected["params"]["head"]["fc"]["kernel"].any()
    norm = found["params"]["head"]["norm"]
    np.testing.assert_array_equal(norm["scale"], whole["head.norm.weight"])


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "convnext.pth", "a.pt", "model_best.pth.tar"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_pickles_are_refused_with_the_way_out(name, exists, tmp_path):
    if exists:
        (tmp_path / name).write_bytes(b"not even read")
    with pytest.raises(CheckpointError, match=r"pickle.*safetensors\.torch\.save_file"):
        timm.load(tmp_path / name)


def test_a_folder_stands_for_its_model_safetensors(atto_file, tmp_path):
    shutil.copy(atto_file, tmp_path / "model.safetensors")
    expected = timm.load(atto_file, "convnext_atto")
    assert_same(timm.load(tmp_path, "convnext_atto"), expected)
    assert_same(timm.load(str(tmp_path), "convnext_atto"), expected)


def test_a_folder_without_weights_is_named(hub, tmp_path):
    with pytest.raises(model_weights.MissingWeightsError, match=r"no file .*model\.safetensors"):
        timm.load(tmp_path)


def test_an_absent_file_is_named(hub, tmp_path):
    with pytest.raises(
        model_weights.MissingWeightsError, match=re.escape(str(tmp_path / "absent.safetensors"))
    ):
        timm.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_a_truncated_file_is_named(share, atto_file, tmp_path):
    whole = atto_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is not a safetensors file")):
        timm.load(path, "convnext_atto")


def test_the_default_weights_come_from_the_hub_cache_without_network(hub, tiny_tensors):
    snapshot = put_in_cache(hub, "timm/convnext_tiny.fb_in1k", tiny_tensors)
    assert models.default_weights("convnext_tiny") == "timm/convnext_tiny.fb_in1k"
    assert model_weights.locate("timm/convnext_tiny.fb_in1k") == snapshot
    assert_same(timm.load(), timm.load(snapshot))


@pytest.mark.parametrize("prefix", ["", "hf-hub:", "hf_hub:"])
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


def test_offline_an_absent_hub_id_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(model_weights.MissingWeightsError) as error:
        timm.load("timm/convnext_tiny.fb_in1k")
    message = str(error.value)
    assert "'timm/convnext_tiny.fb_in1k' are neither in the local hub cache" in message
    assert "hf download timm/convnext_tiny.fb_in1k model.safetensors" in message
    assert "give its path" in message


def test_a_connection_that_breaks_says_how_to_get_the_weights(hub, monkeypatch):
    def broken(*args, **kwargs):
        try:
            raise ConnectionError("no route")
        except ConnectionError as error:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache") from error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(
        model_weights.MissingWeightsError,
        match=r"ConnectionError: no route.*hf download timm/some_model",
    ):
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
    expected = timm_names.expected_tensors("squeezenet1_1", 3)
    tensors = random_tensors({key: shape for key, (_, shape, _) in expected.items()})
    return timm.convert(tensors, "squeezenet1_1", "memory"), tensors


def test_an_npz_file_is_read_as_well(squeezenet, tmp_path):
    variables, tensors = squeezenet
    params = variables["params"]
    np.savez(tmp_path / "model.npz", **tensors)
    assert_same(timm.load(tmp_path / "model.npz", "squeezenet1_1"), variables)
    kernel = params["head"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["classifier.1.weight"][:, :, 0, 0].T)
    fire = params["features_12"]["expand3x3"]["kernel"]
    assert fire[2, 1, 5, 7] == tensors["features.12.expand3x3.weight"][7, 5, 2, 1]


@pytest.mark.parametrize("how", ["pickled", "cut", "empty", "array"])
def test_an_npz_file_that_is_pickled_or_damaged_is_named(how, squeezenet, tmp_path):
    path = tmp_path / "model.npz"
    if how == "pickled":
        np.savez(path, **{**squeezenet[1], "features.0.bias": np.array([{}], dtype=object)})
    elif how == "array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        np.savez(path, **squeezenet[1])
        path.write_bytes(path.read_bytes()[: 100_000 if how == "cut" else 0])
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is not an npz file of plain")):
        timm.load(path, "squeezenet1_1")


def test_weights_that_are_only_a_pickle_on_the_web_say_how_to_convert_it():
    with pytest.raises(model_weights.MissingWeightsError) as error:
        timm.load(models.default_weights("squeezenet1_1"), "squeezenet1_1")
    code = re.search(r'python -c "(.*)"', str(error.value))[1]
    compile(code, "command", "exec")
    assert "squeezenet1_1-b8a52dc0.pth'" in code
    assert "path of squeezenet1_1.safetensors" in str(error.value)


def test_batch_norm_is_read_with_its_statistics_and_written_with_a_counter(tmp_path):
    expected = timm_names.expected_tensors("asff_resnet18", 3)
    tensors = random_tensors({key: shape for key, (_, shape, _) in expected.items()})
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


def test_a_checkpoint_without_running_statistics_names_them():
    expected = timm_names.expected_tensors("resnet18", 3)
    tensors = random_tensors({key: shape for key, (_, shape, _) in expected.items()})
    del tensors["bn1.running_var"]
    with pytest.raises(CheckpointError, match=r"missing: bn1\.running_var \(64,\)"):
        timm.convert(tensors, "resnet18", "memory")


# Names of other libraries, and messages


def in_names_of(library, tensors):
    """timm's tensors as another library saves them: names as its own sources spell them."""
    found = {}
    for key, x in tensors.items():
        part, *rest = key.split(".")
        layer, kind = rest[-2:] if len(rest) > 1 else (None, rest[-1])
        if library == "Facebook's":
            at = {"stem": f"downsample_layers.0.{rest[0]}"}
            at["head"] = "norm" if layer == "norm" else "head"
            if part == "stages":
                stage, group, *inner = rest
                at["stages"] = (
                    f"downsample_layers.{stage}.{inner[0]}"
                    if group == "downsample"
                    else f"stages.{stage}.{inner[0]}"
                )
            inside = {"conv_dw": "dwconv", "norm": "norm", "fc1": "pwconv1", "fc2": "pwconv2"}
        else:
            at = {
                "stem": f"convnext.embeddings.{['patch_embeddings', 'layernorm'][int(rest[0])]}"
                if part == "stem"
                else ""
            }
            at["head"] = "convnext.layernorm" if layer == "norm" else "classifier"
            if part == "stages":
                stage, group, *inner = rest
                within = f"convnext.encoder.stages.{stage}"
                at["stages"] = (
                    f"{within}.downsampling_layer.{inner[0]}"
                    if group == "downsample"
                    else f"{within}.layers.{inner[0]}"
                )
            inside = {"conv_dw": "dwconv", "norm": "layernorm", "fc1": "pwconv1", "fc2": "pwconv2"}
        name = at[part]
        if part == "stages" and rest[1] == "blocks":
            scale = "gamma" if library == "Facebook's" else "layer_scale_parameter"
            name += f".{scale}" if kind == "gamma" else f".{inside[layer]}.{kind}"
        else:
            name += f".{kind}"
        linear = layer in ("fc1", "fc2") and x.ndim == 4
        found[name] = x[:, :, 0, 0] if linear else x
    assert len(found) == len(tensors)
    return found


@pytest.mark.parametrize("library", ["Facebook's", "Hugging Face's"])
def test_other_names_of_a_convnext_are_converted_and_said(library, atto_tensors, tmp_path, caplog):
    theirs = in_names_of(library, atto_tensors)
    assert not theirs.keys() & atto_tensors.keys()
    path = write(theirs, tmp_path / "theirs.safetensors")
    with caplog.at_level("INFO", logger="egmae_jax"):
        variables = timm.load(path, "convnext_atto")
    assert_same(variables, timm.convert(atto_tensors, "convnext_atto", "timm's"))
    assert f"has {library} names of a ConvNeXt" in caplog.text
    assert timm.fits(theirs, "convnext_atto")
    headless = {k: x for k, x in theirs.items() if not re.match(r"head|classifier", k)}
    assert len(headless) == len(theirs) - 2
    found = timm.convert(headless, "convnext_atto", "theirs", classifier=False)
    assert not found["params"]["head"]["fc"]["kernel"].any()
    with pytest.raises(CheckpointError, match=r"2 tensors differ:\n  missing: head\.fc"):
        timm.convert(headless, "convnext_atto", "theirs")


def test_a_backbone_of_hugging_faces_has_no_name_before(atto_tensors):
    theirs = in_names_of("Hugging Face's", atto_tensors)
    theirs = {key.removeprefix("convnext."): x for key, x in theirs.items()}
    variables = timm.convert(theirs, "convnext_atto", "theirs")
    assert_same(variables, timm.convert(atto_tensors, "convnext_atto", "timm's"))


def test_global_response_norms_are_those_of_version_two():
    expected = timm_names.expected_tensors("convnextv2_atto", 3)
    tensors = random_tensors({key: shape for key, (_, shape, _) in expected.items()})
    for (gamma, beta), library in {
        ("gamma", "beta"): "Facebook's",
        ("weight", "bias"): "Hugging Face's",
    }.items():
        plain = {key: x for key, x in tensors.items() if ".grn." not in key}
        theirs = in_names_of(library, plain)
        for key, x in tensors.items():
            if match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d)\.mlp\.grn\.(\w+)", key):
                stage, block, kind = match.groups()
                inside = (
                    f"{stage}.{block}" if library == "Facebook's" else f"{stage}.layers.{block}"
                )
                before = "" if library == "Facebook's" else "convnextv2.encoder."
                name = f"{before}stages.{inside}.grn.{gamma if kind == 'weight' else beta}"
                theirs[name] = x.reshape(1, 1, 1, -1)
        theirs = {k.replace("convnext.", "convnextv2."): x for k, x in theirs.items()}
        variables = timm.convert(theirs, "convnextv2_atto", library)
        scale = variables["params"]["stages_1"]["blocks_1"]["grn_scale"]
        np.testing.assert_array_equal(scale, tensors["stages.1.blocks.1.mlp.grn.weight"])
        assert_same(variables, timm.convert(tensors, "convnextv2_atto", "timm's"))


@pytest.mark.parametrize("library", ["timm's", "Facebook's", "Hugging Face's"])
@pytest.mark.parametrize("prefix", ["model.", "module.", "encoder.", "state_dict.net.backbone."])
@pytest.mark.parametrize("others", [0, 4])
def test_a_prefix_without_a_head_is_told_in_a_line(library, prefix, others, atto_tensors):
    tensors = {k: x for k, x in atto_tensors.items() if not k.startswith("head.fc")}
    tensors = tensors if library == "timm's" else in_names_of(library, tensors)
    tensors = {f"{prefix}{key}": x for key, x in tensors.items()}
    tensors |= {f"decoder.{k}.weight": np.zeros(3, np.float32) for k in range(others)}
    with pytest.raises(CheckpointError) as error:
        timm.convert(tensors, "convnext_atto", "mine", classifier=False)
    message = str(error.value)
    assert f"names that begin with {prefix!r}: save them without it" in message
    assert ("without the 4 others (decoder.0.weight, " in message) == bool(others)
    assert "\n" not in message


def test_several_networks_under_prefixes_are_named(atto_tensors):
    tensors = {
        f"{who}.{key}": x for who in ("student", "teacher") for key, x in atto_tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"several times, .* 'student\.' and 'teacher\.'"):
        timm.convert(tensors, "convnext_atto", "mine")


def test_a_network_and_its_average_are_told_apart(atto_tensors):
    tensors = atto_tensors | {f"ema.{key}": x for key, x in atto_tensors.items()}
    count = len(atto_tensors)
    with pytest.raises(
        CheckpointError, match=rf"convnext_atto and {count} others \(ema\."
    ) as error:
        timm.convert(tensors, "convnext_atto", "mine")
    assert "save it without these" in str(error.value)


def test_a_prefix_of_another_size_is_told_with_what_differs(atto_tensors):
    tensors = {f"model.{key}": x for key, x in atto_tensors.items()}
    with pytest.raises(CheckpointError, match=r"begin with 'model\.', and without it does not fit"):
        timm.convert(tensors, "convnext_femto", "mine")


def test_at_most_ten_tensors_are_named_some_of_each_kind():
    expected = timm_names.expected_tensors("resnet18", 3)
    tensors = random_tensors({key: shape for key, (_, shape, _) in expected.items()})
    tensors = {f"{key}_": x for key, x in tensors.items()} | {"fc.bias": np.zeros(3, np.float32)}
    tensors["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    with pytest.raises(CheckpointError) as error:
        timm.convert(tensors, "resnet18", "mine")
    first, *lines = str(error.value).splitlines()
    missing, extra = len(expected) - 2, len(expected)
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

"""CONTRIBUTING.md's data set, network, corruption and metric, as files of a user or the package."""

import importlib.util
import re
import shutil

import pytest
from flax import linen as nn

from egmae_jax import models
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import read_json
from egmae_jax.data import datasets
from egmae_jax.evaluation import metrics
from egmae_jax.method import corruption
from egmae_jax.models import registry
from egmae_jax.run import rules
from egmae_jax.run.config import flatten
from tests import REPOSITORY, tiny

CONFIG = """
import clinic, small, blackout, mcc
from egmae_jax.models.convnext import register_convnext
from egmae_jax.run import default_config

register_convnext("convnext_own", (1, 1, 1, 1), (8, 12, 16, 20), "none")

def get_config():
    config = default_config.get_config()
    config.update_from_flattened_dict(FIELDS)
    return config
"""


# Run in a copy of the package that has the code of each section.
CHECK = """
from egmae_jax import models
from egmae_jax.data import datasets
from egmae_jax.evaluation import metrics
from egmae_jax.method import corruption
assert models.__file__.startswith(FOLDER)
for register in (
    lambda: models.register("small", models.small.Small),
    lambda: datasets.register(datasets.get("clinic")),
    lambda: corruption.register("blackout")(lambda *_, **__: None),
    lambda: metrics.register("mcc", "MCC")(lambda *_: 0.0),
):
    try:
        register()
    except ValueError as error:
        assert "register yours by another name" in str(error)
    else:
        raise AssertionError("a name of the package was replaced")
"""


def snippets() -> dict[str, str]:
    """The Python of each section of CONTRIBUTING.md, by its heading."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    matches = {title: re.search(r"```python\n(.*?)```", text, re.S) for title, text in sections}
    return {title: match[1] for title, match in matches.items() if match}


def test_what_the_package_has_is_not_replaced():
    for register in (
        lambda: models.register("resnet50", lambda **_: None),
        lambda: corruption.register("entropy_noise")(lambda *_, **__: None),
        lambda: metrics.register("auc", "AUC")(lambda *_: 0.0),
        lambda: datasets.register(datasets.get("busi")),
    ):
        with pytest.raises(ValueError, match="register yours by another name"):
            register()


class Bare(models.Model):
    """A network whose variables have names of its own, by its own initializers."""

    layers = {}  # noqa: RUF012

    @nn.compact
    def __call__(self, images, *, train=False):
        """[B, H, W, 3] -> [B, num_classes]."""
        return nn.Dense(self.num_classes, name="own")(images.mean((1, 2)))


def test_what_a_run_asks_of_a_network_is_checked_before_it_begins(monkeypatch):
    monkeypatch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
    models.register("bare", Bare)
    fields = {"branches": ("bare",), "model__kernel_init": "fan_in"}
    config = tiny.make_config("data", "cache", **fields)
    with pytest.raises(ConfigError) as error:
        rules.check(config, num_devices=1)
    for problem in (
        "The network 'bare' has no pattern for the variable 'own/",
        "model.kernel_init is 'fan_in', but the network 'bare' has its own initializers",
    ):
        assert problem in str(error.value)


@pytest.mark.essential
@pytest.mark.slow
def test_a_file_of_each_kind_is_all_that_a_run_needs(tmp_path):
    modules = {"data set": "clinic", "network": "small", "corruption": "blackout"}
    modules |= {"metric": "mcc"}
    code = snippets()
    assert code.keys() == {f"A {kind}" for kind in modules}
    for kind, module in modules.items():
        (tmp_path / f"{module}.py").write_text(code[f"A {kind}"])
    tiny.make_data(tmp_path / "data")
    config = tiny.make_config(
        tmp_path / "data",
        tmp_path / "cache",
        data__name="clinic",
        branches=("mae", "small"),
        model__name="convnext_own",
        corruption__kind="blackout",
        rounds__count=1,
    )
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in flatten(config).items()}
    (tmp_path / "own.py").write_text(CONFIG.replace("FIELDS", repr(fields)))
    tiny.python(
        *("-m", "egmae_jax.commands.train", f"--config={tmp_path / 'own.py'}"),
        f"--workdir={tmp_path / 'run'}",
        cwd=tmp_path,
        PYTHONPATH=f"{REPOSITORY}:{tmp_path}",
    )
    results = read_json(tmp_path / "run" / "results.json")
    assert results["dataset"]["title"] == "Clinic"
    assert results["config"]["corruption"]["kind"] == "blackout"
    assert set(results["summary"]) == {"mae", "small", "ensemble"}
    assert -1 <= results["summary"]["small"]["mcc"]["mean"] <= 1


def test_code_of_each_kind_can_be_added_to_the_package(tmp_path):
    package, code = tmp_path / "egmae_jax", snippets()
    shutil.copytree(REPOSITORY / "egmae_jax", package)

    def insert(file, *places):
        """Adds a line to a list of names, after a line of it."""
        text = (package / file).read_text()
        for line, added in places:
            assert text.count(line) == 1
            text = text.replace(line, line + added)
        (package / file).write_text(text)

    def add(file, section):
        """Adds the function of a section to the others, without what the section imports."""
        _, decorator, function = code[section].partition("@register")
        text = (package / file).read_text()
        end = re.search(r"^_\w+\.reserve\(\)\n", text, re.M)  # of the package's own names
        assert end is not None
        added = f"{decorator}{function}\n\n"
        (package / file).write_text(text[: end.start()] + added + text[end.start() :])

    (package / "models" / "small.py").write_text(code["A network"])
    lines = ("    resnet,\n", "    small,\n"), ('    "resnet",\n', '    "small",\n')
    insert("models/__init__.py", *lines)
    (package / "data" / "datasets" / "clinic.py").write_text(code["A data set"])
    insert("data/datasets/__init__.py", ("    busi,\n", "    clinic,\n"))
    add("method/corruption.py", "A corruption")
    add("evaluation/metrics.py", "A metric")
    check = CHECK.replace("FOLDER", repr(str(tmp_path)))
    tiny.python("-c", check, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    if importlib.util.find_spec("ruff"):
        config = f"--config={REPOSITORY / 'pyproject.toml'}"
        tiny.python("-m", "ruff", "check", config, package, cwd=tmp_path)

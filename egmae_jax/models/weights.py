"""Finds weight files, on disk or on the Hugging Face hub, and reads their tensors."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import read_npz, require_readable
from egmae_jax.core.tensors import read_safetensors
from egmae_jax.models.model import Normalization

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """The weights cannot be used; the message names the file and the problem."""


class MissingWeightsError(UserError):
    """The weights were not found; the message tells how to get them."""


def is_hub_id(source: str | os.PathLike) -> bool:
    """Whether `locate` looks for a source on the hub: it is not a file, a folder or a URL."""
    path = Path(source).expanduser()
    repo_id = str(source).removeprefix("hf-hub:").removeprefix("hf_hub:")
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) is not None
    return is_name and not path.exists() and path.suffix not in {".safetensors", ".npz"}


def locate(source: str | os.PathLike) -> Path:
    """Returns the path of a weight file, which is downloaded from the hub if needed.

    Args:
        source: path, folder, hub id or URL, see `models.timm.load`.

    Raises:
        CheckpointError: the file is a pickle; reading it may execute code.
        MissingWeightsError: there are no weights; the message tells how to get them.
    """
    if str(source).startswith("https://"):
        file = str(source).rsplit("/", 1)[-1].split("-")[0] + ".safetensors"
        raise MissingWeightsError(
            f"These weights are published only as a pickle, {source}; reading it can execute code "
            "of its author. If you trust it, convert it once, with torch installed: "
            f'python -c "import torch, safetensors.torch as s; s.save_file(torch.hub.'
            f"load_state_dict_from_url('{source}'), '{file}')\". Then give the path of {file}, or "
            "of its folder if several models need different weights."
        )
    path = Path(source).expanduser()
    if path.suffix in {".bin", ".pth", ".pt", ".tar", ".ckpt", ".pkl", ".pickle"}:
        raise CheckpointError(
            f"{path} is a pickle, which is refused, because reading it can execute code of its "
            "author. If you trust it, convert it once: `safetensors.torch.save_file("
            "torch.load(path, weights_only=True), 'model.safetensors')`; if the checkpoint holds "
            "more than tensors, save only its state_dict (docs/pytorch.md)."
        )
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        return path
    if not is_hub_id(source):
        raise MissingWeightsError(f"There is no file {path}.")
    return _download(str(source).removeprefix("hf-hub:").removeprefix("hf_hub:"))


def _download(repo_id: str) -> Path:
    """Returns the path of a hub repository's weights, downloaded unless they are in the cache."""
    cached = huggingface_hub.try_to_load_from_cache(repo_id, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    logger.info("Downloading %s from the Hugging Face hub", repo_id)
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, "model.safetensors"))
    except RepositoryNotFoundError:
        raise MissingWeightsError(f"The Hugging Face hub has no repository {repo_id!r}.") from None
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise MissingWeightsError(
                f"The repository {repo_id!r} has no model.safetensors."
            ) from None
        unreachable: BaseException = error
    except Exception as error:  # noqa: BLE001 (the HTTP library's errors are not wrapped)
        unreachable = error
    # The network error is the last one in the chain.
    while unreachable.__cause__ is not None:
        unreachable = unreachable.__cause__
    reason = " ".join(str(unreachable).split())[:200]
    raise MissingWeightsError(
        f"The weights {repo_id!r} are neither in the local hub cache nor could they be fetched "
        f"({type(unreachable).__name__}: {reason}). With a network connection, run "
        f"`hf download {repo_id} model.safetensors`. Without one, download the file on another "
        "machine, copy it here and give its path."
    )


def expected_normalization(path: Path, model_name: str) -> Normalization | None:
    """Returns the normalisation of images that timm's config.json beside a weight file states.

    Args:
        path: the weight file.
        model_name: name of the network in timm.

    Returns:
        None if there is no such file, or it is of another network, or it states none.
    """
    try:
        config = json.loads((path.parent / "config.json").read_text("utf-8"))
        if config["architecture"] != model_name:
            return None
        settings = config.get("pretrained_cfg", config)
        values: list[Any] = [tuple(map(float, settings[name])) for name in ("mean", "std")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return Normalization(*values)


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors or npz file, by name.

    Raises:
        CheckpointError: the file is neither of these, or damaged.
        AccessError: the system denies access to the file.
    """
    require_readable(path)
    if path.suffix == ".npz":
        try:
            return read_npz(path)
        except ValueError as error:
            raise CheckpointError(f"{path} is not an npz file of plain arrays ({error}).") from None
    try:
        return read_safetensors(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}.") from None

"""Finds files of weights, on disk or on the Hugging Face hub, and reads their tensors."""

import logging
import os
import re
from pathlib import Path

import huggingface_hub
import numpy as np
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from egmae_jax.core.errors import UserError
from egmae_jax.core.files import read_npz, require_readable
from egmae_jax.core.quiet import quiet
from egmae_jax.core.tensors import read_safetensors

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """The weights cannot be used; the message names the file and what is wrong with it."""


class MissingWeightsError(UserError):
    """There are no weights where they were looked for; the message says how to get them."""


def is_hub_id(source: str | os.PathLike) -> bool:
    """Whether `locate` looks for a source on the hub, as it is no file, folder or address."""
    path = Path(source).expanduser()
    repo_id = str(source).removeprefix("hf-hub:").removeprefix("hf_hub:")
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) is not None
    return is_name and not path.exists() and path.suffix not in {".safetensors", ".npz"}


def locate(source: str | os.PathLike) -> Path:
    """Finds the file that a source of weights stands for, and fetches it from the hub if needed.

    Args:
        source: as for `models.timm.load`.

    Raises:
        CheckpointError: it is a pickle, which may run code.
        MissingWeightsError: there are no weights there; the message says how to get them.
    """
    if str(source).startswith("https://"):
        file = str(source).rsplit("/", 1)[-1].split("-")[0] + ".safetensors"
        raise MissingWeightsError(
            f"These weights are published only as a pickle, {source}; reading one can run code "
            "that its author chose. Convert it once, where you trust it and have torch: "
            f'python -c "import torch, safetensors.torch as s; s.save_file(torch.hub.'
            f"load_state_dict_from_url('{source}'), '{file}')\". Then give the path of {file}, or "
            "of a folder that holds it where other models start from other weights."
        )
    path = Path(source).expanduser()
    if path.suffix in {".bin", ".pth", ".pt", ".tar", ".ckpt", ".pkl", ".pickle"}:
        raise CheckpointError(
            f"{path} is a pickle: reading one can run code that its author chose, so it is "
            "refused. Convert it once, where you trust it: `safetensors.torch.save_file("
            "torch.load(path, weights_only=True), 'model.safetensors')`, of a checkpoint that "
            "holds more than tensors its state_dict (docs/pytorch.md)."
        )
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        return path
    if not is_hub_id(source):
        raise MissingWeightsError(f"There is no file {path}.")
    return _fetch(str(source).removeprefix("hf-hub:").removeprefix("hf_hub:"))


def _fetch(repo_id: str) -> Path:
    """The weights of a repository on the hub, from the local cache where they are there."""
    cached = huggingface_hub.try_to_load_from_cache(repo_id, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    logger.info("Fetching %s from the Hugging Face hub", repo_id)
    try:
        with quiet("huggingface_hub"):  # our error says what its retries would
            return Path(huggingface_hub.hf_hub_download(repo_id, "model.safetensors"))
    except RepositoryNotFoundError:
        raise MissingWeightsError(f"The Hugging Face hub has no repository {repo_id!r}.") from None
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise MissingWeightsError(
                f"The repository {repo_id!r} has no model.safetensors."
            ) from None
        unreachable: BaseException = error
    except Exception as error:  # the client passes on whatever its HTTP library raises
        unreachable = error
    # What went wrong with the network lies at the end of the chain.
    while unreachable.__cause__ is not None:
        unreachable = unreachable.__cause__
    reason = " ".join(str(unreachable).split())[:200]
    raise MissingWeightsError(
        f"The weights {repo_id!r} are neither in the local hub cache nor could they be fetched "
        f"({type(unreachable).__name__}: {reason}). With network: "
        f"`hf download {repo_id} model.safetensors`. Without: fetch that file elsewhere and give "
        "its path."
    )


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors or npz file.

    Raises:
        CheckpointError: it is none, or damaged.
        AccessError: the system does not let it be read.
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

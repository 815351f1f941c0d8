"""safetensors files, whole or not there, held to the SHA-256 of what was written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from egmae_jax.core.files import write_atomically


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, whole or not at all, with the SHA-256 of what is in it.

    The same tensors give the same bytes.
    """
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    metadata = {"format": "pt", "sha256": _digest(contiguous)}
    content = safetensors.numpy.save(contiguous, metadata=metadata)
    # The library writes the metadata in an order that changes from call to call.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the format asks
    write_atomically(path, len(text).to_bytes(8, "little") + text + content[end:])


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, held to the SHA-256 that `write_safetensors` gave it.

    Raises:
        ValueError: it is none, is damaged, or holds what numpy has not, such as 8-bit floats.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, AttributeError, TypeError, ValueError, OSError) as error:
        raise ValueError(str(error)) from None
    if expected is not None and expected != _digest(tensors):
        raise ValueError("its SHA-256 is not that of what was written")
    return tensors


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {x.shape} ".encode())
        digest.update(x.data)
    return digest.hexdigest()

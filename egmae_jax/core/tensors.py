"""safetensors files, written atomically with a SHA-256 of the tensors, which reading checks."""

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from egmae_jax.core.files import write_atomically


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file atomically, with the SHA-256 of its tensors in the metadata.

    The same tensors always give the same bytes.

    Args:
        path: path of the file.
        tensors: arrays by name.
    """
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    metadata = {"format": "pt", "sha256": _digest(contiguous)}
    content = safetensors.numpy.save(contiguous, metadata=metadata)
    # The library writes the metadata in an arbitrary order, so sort it.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    write_atomically(path, len(text).to_bytes(8, "little") + text + content[end:])


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors file, by name, and checks their SHA-256 if it has one.

    Raises:
        ValueError: the file is damaged or not a safetensors file, or has a dtype that numpy lacks,
            such as 8-bit floats.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
    except (safetensors.SafetensorError, AttributeError, TypeError, ValueError, OSError) as error:
        raise ValueError(str(error)) from None
    if expected is not None and expected != _digest(tensors):
        raise ValueError("its SHA-256 does not match its content")
    return tensors


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {x.shape} ".encode())
        digest.update(x.data)
    return digest.hexdigest()

"""Weights alone, in the safetensors format: no optimiser, nothing that runs code, and readable without this program."""

import json
from pathlib import Path

from safetensors.torch import save

from npbgpp.core.files import write_atomically
from npbgpp.engine.checkpoint import SAFETENSORS_KEY, read_weights

SUFFIX = ".safetensors"


def export_weights(checkpoint: Path, out: Path) -> int:
    """Writes the weights of a checkpoint, which ``weights_path`` takes as it takes the checkpoint; returns how many tensors there are.

    Raises:
        InputError: a file that is no checkpoint, or one that cannot be written.
    """
    found = read_weights(checkpoint)
    metadata = None
    if found.origin is not None:
        metadata = {SAFETENSORS_KEY: json.dumps({"format": found.origin.format, "system": found.origin.system})}
    # tensors that share memory, or are a part of some, are stored each for itself
    content = save({name: value.detach().contiguous().clone() for name, value in found.tensors.items()}, metadata)
    write_atomically(out, lambda file: file.write(content))
    return len(found.tensors)

"""Weights of a checkpoint in the safetensors format: without optimizer states, and without code that runs on loading."""

import json
from pathlib import Path

from safetensors.torch import save

from npbgpp.core.files import write_atomically
from npbgpp.engine.checkpoint import SAFETENSORS_KEY, read_weights

SUFFIX = ".safetensors"


def export_weights(checkpoint: Path, out: Path) -> int:
    """Writes the weights of a checkpoint; ``weights_path`` accepts the file. Returns the number of tensors.

    Raises:
        InputError: a file that is not a checkpoint, or one that cannot be written.
    """
    found = read_weights(checkpoint)
    metadata = None
    if found.origin is not None:
        metadata = {SAFETENSORS_KEY: json.dumps({"format": found.origin.format, "system": found.origin.system})}
    # safetensors refuses tensors that share memory
    content = save({name: value.detach().contiguous().clone() for name, value in found.tensors.items()}, metadata)
    write_atomically(out, lambda file: file.write(content))
    return len(found.tensors)

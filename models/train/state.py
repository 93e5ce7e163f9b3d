"""The state of a training run in one safetensors file: tensors as tensors, the rest as JSON in its metadata.

Lightning's own checkpoints are pickles, which run code when they are loaded. This plugin keeps all that Lightning
needs to go on (weights, optimizer, schedule, loops, callbacks) without one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from subbyte.errors import CheckpointError
from subbyte.files.output import write_file
from subbyte.files.plain import open_plain
from subbyte.models.checkpoint_files import check_bools, parse, read_header
from subbyte.models.train.lightning import CheckpointIO

_KIND = "subbyte training state 3"  # 1 held steps instead of their change from the start; 2 no batch that comes next
_REMEDY = "train again without resume"


class TrainingStateIO(CheckpointIO):
    """Writes and reads Lightning's checkpoint dictionary."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to the file `path`, atomically."""
        tensors: dict[str, Tensor] = {}
        tree = _encode(checkpoint, "state", tensors)
        content = save(tensors, metadata={"kind": _KIND, "tree": json.dumps(tree)})
        write_file(path, content)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read `path` on the CPU; raises `CheckpointError` for a file that is missing, damaged or of another kind."""
        path = Path(path)
        try:
            with open_plain(path) as file:
                read_header(file, path, _REMEDY)
                end = file.tell()
                file.seek(0)
                content = file.read()
            tensors = load(content)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot resume from it ({error}); {_REMEDY}.") from error
        check_bools(tensors, path)
        metadata = parse(content[8:end], path).get("__metadata__") or {}
        if metadata.get("kind") != _KIND:
            raise CheckpointError(
                f"{path}: it is '{metadata.get('kind', 'of another program')}', expected '{_KIND}': not the state of a "
                f"training run of this version; {_REMEDY}."
            )
        try:
            state = _decode(parse(metadata["tree"].encode(), path), tensors)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}, expected a dict")
        except (CheckpointError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: damaged training state ({error}); {_REMEDY}.") from error
        return state

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file `path`."""
        Path(path).unlink(missing_ok=True)


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`: containers become {"tag": content}, tensors move to `tensors` under their place in the tree."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        tag = "list" if isinstance(value, list) else "tuple"
        return {tag: [_encode(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"training state '{place}' holds {type(value).__name__}, which is neither data nor tensor.")


def _decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((tag, content),) = tree.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return items if tag == "list" else tuple(items)

"""Model architectures, one file each: `create("resnet8", channels=1, size=28)`, `list_models("resnet*")`."""

from subbyte.models.zoo import ds_cnn, gru, mlp, resnet, vit  # importing a file registers what it defines
from subbyte.models.zoo.registry import (
    INPUTS,
    InputKind,
    ModelEntry,
    as_size,
    create,
    create_for,
    create_for_scheme,
    get_model,
    list_models,
    options_for_scheme,
    register_model,
)

__all__ = [
    "INPUTS",
    "InputKind",
    "ModelEntry",
    "as_size",
    "create",
    "create_for",
    "create_for_scheme",
    "ds_cnn",
    "get_model",
    "gru",
    "list_models",
    "mlp",
    "options_for_scheme",
    "register_model",
    "resnet",
    "vit",
]

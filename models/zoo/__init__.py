"""Model architectures, one file each: `create("resnet8", channels=1, size=28)`, `list_models("resnet*")`."""

from subbyte.models.zoo import (
    conv1d,
    decoder,
    ds_cnn,
    gru,
    mlp,
    resnet,
    unet,
    vit,
)  # importing a file registers what it defines
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
    "conv1d",
    "create",
    "create_for",
    "create_for_scheme",
    "decoder",
    "ds_cnn",
    "get_model",
    "gru",
    "list_models",
    "mlp",
    "options_for_scheme",
    "register_model",
    "resnet",
    "unet",
    "vit",
]

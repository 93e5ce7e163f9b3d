"""Data sets for training and checking: samples (input, target), whose target has the form that a task says.

    load_data("digits")
    load_data("imagefolder", "photos", size=32)

A file of this folder is found by itself: importing the package registers the data sets of every one.
"""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.models.data.augmentation import shift_and_flip
from subbyte.models.data.data_set import INPUT_TYPES, Augment, Data
from subbyte.models.data.datasets import from_datasets
from subbyte.models.data.description import describe
from subbyte.models.data.idx import read_idx
from subbyte.models.data.image_folder import ImageFolder
from subbyte.models.data.in_memory import ImageTensors, Samples
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import DataEntry, get_data, list_data, load_data, load_recorded, register_data

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = [
    "INPUT_TYPES",
    "Augment",
    "Data",
    "DataEntry",
    "ImageFolder",
    "ImageTensors",
    "Normalization",
    "Samples",
    "describe",
    "from_datasets",
    "get_data",
    "list_data",
    "load_data",
    "load_recorded",
    "read_idx",
    "register_data",
    "shift_and_flip",
]

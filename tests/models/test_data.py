"""Data sets: what they hold, and what is said of files that are missing or damaged."""

from __future__ import annotations

import gzip
import struct
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_files import idx
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from subbyte.errors import DataError, RegistrationError, UnknownNameError, UsageError
from subbyte.models.data import (
    Data,
    ImageTensors,
    Normalization,
    from_datasets,
    list_data,
    load_data,
    read_idx,
    register_data,
    shift_and_flip,
)
from subbyte.models.data import fashion_mnist as fashion_mnist_module
from subbyte.models.train.batches import EpochBatches, batch_loader

IMAGES, LABELS = 0x803, 0x801


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """Four small files in Fashion-MNIST's form: two plain, two gzipped."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 12)):
        images = idx(rng.integers(0, 256, (count, 28, 28)), IMAGES)
        labels = idx(rng.integers(0, 10, count), LABELS)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path


# ---- digits ----


def test_digits_are_split_once_and_for_all() -> None:
    first, second = load_data("digits"), load_data("digits")
    assert (len(first.train), len(first.test)) == (1437, 360)  # type: ignore[arg-type]
    assert torch.equal(first.test.labels, second.test.labels)  # type: ignore[attr-defined]
    assert (first.classes, first.channels, first.size) == (10, 1, (8, 8))
    image, label = first.train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert isinstance(label, int)


def test_digits_are_normalised_and_no_test_image_is_lost_or_doubled() -> None:
    digits = load_data("digits")
    pixels = torch.cat([digits.train.pixels, digits.test.pixels])  # type: ignore[attr-defined]
    labels = torch.cat([digits.train.labels, digits.test.labels])  # type: ignore[attr-defined]
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    values = digits.normalization(pixels)  # type: ignore[misc]
    assert abs(values.mean().item()) < 1e-3
    assert abs(values.std().item() - 1) < 1e-3


def test_a_data_set_is_registered_once() -> None:
    with pytest.raises(RegistrationError, match="data set 'digits' is registered already"):
        register_data("digits", summary="")


def test_digits_take_no_path() -> None:
    with pytest.raises(UsageError, match="takes no path"):
        load_data("digits", "somewhere")


# ---- Fashion-MNIST ----


def test_fashion_mnist_is_read_plain_and_gzipped(fashion_folder: Path) -> None:
    fashion = load_data("fashion-mnist", fashion_folder)
    assert (len(fashion.train), len(fashion.test)) == (30, 12)  # type: ignore[arg-type]
    image, label = fashion.test[3]
    assert image.shape == (1, 28, 28)
    assert 0 <= label < 10
    batch, labels = fashion.test.batch([3, 4])  # type: ignore[attr-defined]
    assert torch.equal(batch[0], image)
    assert labels[0] == label


def test_fashion_mnist_absent_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        load_data("fashion-mnist", tmp_path / "nowhere")
    monkeypatch.setattr(fashion_mnist_module, "FASHION_MNIST_FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        load_data("fashion-mnist")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*missing"):
        load_data("fashion-mnist", tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 10, 500, -1])
def test_a_truncated_file_is_refused(fashion_folder: Path, keep: int) -> None:
    file = fashion_folder / "train-images-idx3-ubyte"
    whole = gzip.decompress((fashion_folder / "train-images-idx3-ubyte.gz").read_bytes())
    file.write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*bytes.*dataset-fashion-mnist"):
        load_data("fashion-mnist", fashion_folder)


def test_a_truncated_or_false_gzip_is_refused(fashion_folder: Path) -> None:
    file = fashion_folder / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for content in (whole[:-20], b"not gzip at all", whole[:100] + bytes(50) + whole[150:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"t10k-images.*dataset-fashion-mnist"):
            load_data("fashion-mnist", fashion_folder)


def test_a_wrong_magic_number_is_refused(fashion_folder: Path) -> None:
    file = fashion_folder / "train-labels-idx1-ubyte"
    file.write_bytes(idx(np.zeros((30, 28, 28)), IMAGES))
    with pytest.raises(DataError, match="magic number is 0x00000803, expected 0x00000801"):
        read_idx(file, LABELS)


def test_a_header_that_promises_more_than_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "huge"
    file.write_bytes(struct.pack(">I3I", IMAGES, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(10))
    with pytest.raises(DataError, match="header's shape"):
        read_idx(file, IMAGES)


def test_other_images_are_not_fashion_mnist(fashion_folder: Path) -> None:
    (fashion_folder / "train-labels-idx1-ubyte").write_bytes(idx(np.full(30, 11), LABELS))
    with pytest.raises(DataError, match="not Fashion-MNIST"):
        load_data("fashion-mnist", fashion_folder)


def test_counts_that_differ_are_refused(fashion_folder: Path) -> None:
    (fashion_folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29), LABELS))
    with pytest.raises(DataError, match="30 inputs but 29 targets"):
        load_data("fashion-mnist", fashion_folder)


# ---- folders of images ----


def image_tree(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    for part in parts:
        for shade, name in ((40, "cat"), (200, "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (50 + 10 * number, 40), (shade, shade, shade)).save(folder / f"{number}.png")
    return root


def test_image_folder_gives_cropped_normalised_images(tmp_path: Path) -> None:
    folder = load_data("imagefolder", image_tree(tmp_path), size=32)
    assert folder.class_names == ("cat", "dog")
    for part in (folder.train, folder.test):
        image, label = part[3]
        assert image.shape == (3, 32, 32)
        assert label == 1
        assert torch.allclose(
            image[:, 0, 0],
            (torch.tensor(200 / 255) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]),
            atol=1e-5,
        )


def test_image_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a path"):
        load_data("imagefolder")
    with pytest.raises(DataError, match="no folder 'test'"):
        load_data("imagefolder", image_tree(tmp_path / "a", ("train",)))
    tree = image_tree(tmp_path / "b")
    (tree / "train" / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"0\.png: cannot be decoded"):
        load_data("imagefolder", tree, size=16).train[0]
    (tree / "test" / "cow").mkdir()
    with pytest.raises(DataError, match="class 'cow' has no folder"):
        load_data("imagefolder", tree)
    for file in (tree / "test").rglob("*.png"):
        file.unlink()
    (tree / "test" / "cow").rmdir()
    with pytest.raises(DataError, match="no files"):
        load_data("imagefolder", tree)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 60_000), "to cover the crop it needs 258x15456000 pixels"), ((9_000, 9_000), "it has 9000x9000 pixels")],
)
def test_a_small_file_that_wants_gigabytes_is_refused(shape: tuple[int, int], words: str, tmp_path: Path) -> None:
    tree = image_tree(tmp_path)
    path = tree / "test" / "cat" / "0.png"
    Image.new("1", shape).save(path)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=rf"0\.png: cannot be decoded \({words}, at most \d+ are decoded\)"):
        load_data("imagefolder", tree, size=224).test[0]


def test_what_else_a_decoder_raises_is_an_error_of_ours(tmp_path: Path) -> None:
    tree = image_tree(tmp_path)
    path = tree / "test" / "cat" / "0.png"
    content = path.read_bytes()
    chunk = b"iCCP" + b"name\0"  # and nothing behind it, which Pillow takes for granted
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + chunk + content[33:])
    with pytest.raises(DataError, match=r"0\.png: cannot be decoded \(.+\); remove the file"):
        load_data("imagefolder", tree, size=8).test[0]


def test_images_of_other_formats_are_not_decoded_whatever_their_suffix(tmp_path: Path) -> None:
    """For EPS, Pillow would run Ghostscript on the file."""
    tree = image_tree(tmp_path)
    Image.new("RGB", (8, 8)).save(tree / "test" / "cat" / "0.png", "EPS")
    with pytest.raises(DataError, match=r"0\.png: cannot be decoded \(cannot identify"):
        load_data("imagefolder", tree, size=8).test[0]


def test_an_idx_shape_that_no_array_can_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">4I", 0x803, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    with pytest.raises(DataError, match=r"the header's shape \(4294967295, 4294967295, 0\)"):
        read_idx(path, 0x803)


# ---- any Dataset, the register ----


def test_any_pair_of_datasets() -> None:
    images, labels = torch.randn(6, 2, 5, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    data = from_datasets(TensorDataset(images, labels), TensorDataset(images, labels))
    assert (data.classes, data.channels, data.size) == (3, 2, (5, 4))
    with pytest.raises(DataError, match="inputs must be float32 or int64 tensors"):
        from_datasets(TensorDataset(images.double(), labels), TensorDataset(images, labels))
    with pytest.raises(DataError, match=r"must be \(input, target\)"):
        from_datasets(TensorDataset(images), TensorDataset(images))


def test_unknown_data_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'fashion-mnist'"):
        load_data("fashion_mnist")
    assert {"digits", "fashion-mnist", "imagefolder"} <= set(list_data())


# ---- augmentation and batches ----


def test_shift_and_flip_moves_pixels_only() -> None:
    images = torch.rand(64, 2, 9, 7)
    augment = shift_and_flip(2)
    moved = augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(moved, augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(moved, augment(images, torch.Generator().manual_seed(2)))
    for before, after in zip(images, moved, strict=True):
        assert torch.isin(after, before).all()
    assert torch.equal(shift_and_flip(0, flip=False)(images, torch.Generator()), images)


def test_a_shift_by_one_is_a_shift_by_one() -> None:
    image = torch.arange(25.0).reshape(1, 1, 5, 5).expand(200, -1, -1, -1)
    moved = shift_and_flip(1, flip=False)(image, torch.Generator().manual_seed(0))
    centres = moved[:, 0, 2, 2]
    assert set(centres.tolist()) == {6.0, 7.0, 8.0, 11.0, 12.0, 13.0, 16.0, 17.0, 18.0}
    assert torch.equal(moved[:, 0, 2, 3] - centres, torch.ones(200))


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = EpochBatches(20, 6, shuffle=True, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert [len(batch) for batch in order(0, 0)] == [6, 6, 6]
    assert len(set(chain.from_iterable(order(0, 0)))) == 18


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_every_batch(world: int, shuffle: bool) -> None:
    whole = list(EpochBatches(31, 6, shuffle=shuffle))
    shares = [list(EpochBatches(31, 6, shuffle=shuffle, rank=rank, world=world)) for rank in range(world)]
    assert all(len(share) == len(whole) for share in shares)
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(chain.from_iterable(share[number] for share in shares))
    if not shuffle:
        assert sorted(chain.from_iterable(whole)) == list(range(31))


def test_a_batch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        EpochBatches(100, 6, shuffle=True, world=4)


def test_batch_loader_gives_the_same_for_any_dataset() -> None:
    digits = load_data("digits")
    fast = next(iter(batch_loader(digits.test, EpochBatches(360, 5, shuffle=False))))

    class Plain(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 360

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return digits.test[index]

    slow = next(iter(batch_loader(Plain(), EpochBatches(360, 5, shuffle=False))))
    assert torch.equal(fast[0], slow[0])
    assert torch.equal(fast[1], slow[1])


@pytest.mark.parametrize("part", ["training", "test"])
def test_a_data_set_without_samples_is_refused(part: str) -> None:
    some, none = (ImageTensors(torch.zeros(n, 1, 4, 4), torch.zeros(n), Normalization()) for n in (3, 0))
    train, test = (none, some) if part == "training" else (some, none)
    with pytest.raises(DataError, match=f"data set 'custom': the {part} set is empty"):
        from_datasets(train, test)
    with pytest.raises(DataError, match=f"data set 'mine': the {part} set is empty"):
        Data("mine", train, test, (1, 4, 4), 2)
    with pytest.raises(DataError, match="the training set has no length"):
        from_datasets(Endless(), some)


class Tokens(Dataset[Any]):
    """Five windows of eight tokens, and the numbers that belong to each."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return torch.arange(8) + index, self.targets[index]


def test_inputs_and_targets_of_any_form_come_as_arrays() -> None:
    data = Data("t", Tokens(range(5)), Tokens([[0.5, index] for index in range(5)]), (8,), 20, "int64")
    inputs, targets = data.test_arrays(3)
    assert inputs.dtype == np.int64
    assert inputs.tolist() == [list(range(i, i + 8)) for i in range(3)]
    assert targets.dtype == np.float32
    assert targets.tolist() == [[0.5, 0.0], [0.5, 1.0], [0.5, 2.0]]
    labels = Data("t", Tokens(range(5)), Tokens(torch.arange(5)), (8,), 20, "int64").test_arrays()[1]
    assert labels.dtype == np.int64
    assert labels.tolist() == list(range(5))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ([[0], [0, 1]], "data set 't': its targets have several shapes"),
        (["a", "b"], "data set 't': its targets are <U1, expected numbers"),
    ],
)
def test_targets_that_are_no_array_are_refused(targets: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Data("t", Tokens(targets), Tokens(targets), (8,), 20, "int64").test_arrays()


@pytest.mark.parametrize("wrong", [{"shape": (0,)}, {"outputs": 0}, {"dtype": "float16"}])
def test_data_that_no_model_can_take_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data set 't': inputs .*, expected sizes of at least 1"):
        Data("t", Tokens(range(5)), Tokens(range(5)), **{"shape": (8,), "outputs": 20, "dtype": "int64", **wrong})


def test_tokens_have_no_channels() -> None:
    data = Data("t", Tokens(range(5)), Tokens(range(5)), (8,), 20, "int64")
    with pytest.raises(DataError, match=r"inputs are int64 \[8\], expected images \[C, H, W\]"):
        _ = data.size


class Endless(IterableDataset[Any]):
    """Samples without a number."""

    def __iter__(self) -> Any:
        return iter(())


def test_fashion_mnist_without_images_is_refused(tmp_path: Path) -> None:
    for prefix in ("train", "t10k"):
        images, labels = np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images, 0x803))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels, 0x801))
    with pytest.raises(DataError, match="the training set is empty"):
        load_data("fashion-mnist", tmp_path)

"""Files of a user: what is read equals what was written, and a damaged file is refused with file, place and remedy."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_files import TS_HEADER, wav, write_images, write_text
from scipy.io import wavfile
from this_machine import skip_for_lack_of

from subbyte.errors import DataError, MissingDependencyError, SubbyteError, UsageError
from subbyte.files import limits
from subbyte.models.data import Data, load_data, load_recorded
from subbyte.models.data.columns import read_table
from subbyte.models.data.named_object import import_named
from subbyte.models.data.npz import read_npz
from subbyte.models.data.sound_folder import read_wav
from subbyte.models.data.tokenizers import ByteTokenizer, tokenizer_of

CSV = "size,colour,way\n1.5,red,up\n2.5,blue,down\n3.5,red,up\n0.5,blue,down\n2,red,up\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def npy(header: str, content: bytes) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return made.getvalue()


def npz(**arrays: Any) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }"
TS = {
    "channels": (TS_HEADER + "1,2:3,4:up\n1,2:down\n", r"a_TRAIN\.ts:7: 1 channels, those before have 2"),
    "lengths": (TS_HEADER + "1,2:3:up\n", r"a_TRAIN\.ts:6: channels of 1 and of 2 values"),
    "label": (TS_HEADER + "1,2:left\n", r"a_TRAIN\.ts:6: ends with 'left', expected one of the classes up, down"),
    "missing": (TS_HEADER + "1,?:up\n", r"a_TRAIN\.ts:6: a value is not a number .*missing values are not read"),
    "infinite": (TS_HEADER + "1,2:3,inf:up\n", r"a_TRAIN\.ts:6: value 1 of channel 1 is inf"),
    "time": (
        "@timeStamps true\n@classLabel true a b\n@data\n",
        r"a_TRAIN\.ts:1: @timestamps is 'true', expected false",
    ),
    "one class": (
        "@classLabel true a\n@data\n",
        r"a_TRAIN\.ts:1: @classLabel is 'true a', expected true and two or more",
    ),
    "no classes": ("@data\n1,2:up\n", r"a_TRAIN\.ts:2: data without '@classLabel"),
    "no data": (TS_HEADER, r"a_TRAIN\.ts: no samples after '@data'"),
    "another": ("PK\x03\x04", r"a_TRAIN\.ts:1: expected a setting"),
    "bytes": (b"\xff\xfe\x00", r"a_TRAIN\.ts: cannot be read"),
}
TABLES = {
    "empty": (CSV + "1,,up\n", r"t\.csv: line 7, column 'colour': got '', expected a value"),
    "nan": (CSV + "NaN,red,up\n", r"t\.csv: line 7, column 'size': got 'NaN', expected a value"),
    "text": (CSV + "1.5x,red,up\n", r"t\.csv: line 7, column 'size': got '1\.5x', expected a number, as in line 2"),
    "infinite": (CSV + "inf,red,up\n", r"t\.csv: line 7, column 'size': got 'inf', expected a number"),
    "short": (CSV + "1,red\n", r"t\.csv: line 7 has 2 cells, expected 3"),
    "twice": ("a,a,way\n1,2,x\n", r"t\.csv: two columns 'a'"),
    "nameless": ("a,,way\n1,2,x\n", r"t\.csv: the header \['a', '', 'way'\]"),
    "two kinds": ("a;b,way\n1,2\n", r"t\.csv: the header has ',' and ';', expected one kind"),
    "quote": (CSV + '"1,red,up\n', r"t\.csv: not a CSV file"),
    "bytes": (b"\xff\xfe\x00", r"t\.csv: not a CSV file in UTF-8"),
    "none": ("", r"t\.csv: the header \[\]"),
    "header alone": ("size,way\n", r"0 samples with a share of 0\.2 held out"),
}
ARCHIVES = {
    "no zip": (b"nothing", r"a\.npz: not an \.npz file that can be read"),
    "cut off": (npz(x=np.zeros((9, 9)), y=np.zeros(9))[:-30], r"a\.npz: not an \.npz file that can be read"),
    "names": (npz(x=np.zeros((9, 9)), z=np.zeros(9)), r"a\.npz: no array 'x_train', nor 'x' and 'y'; it has: x, z"),
    "rows": (npz(x=np.zeros((9, 9)), y=np.zeros(8)), r"a\.npz: 9 rows of 'x' and 8 of 'y', expected as many"),
    "infinite": (
        npz(x=np.array([[0.0], [np.nan]]), y=np.zeros(2, np.int64)),
        r"a\.npz: array 'x': the value at \[[01], 0\] is nan",
    ),
    "objects": (npz(x=np.array([{}], object), y=np.zeros(1)), r"array 'x': it is object, expected numbers"),
    "promises": (archive(x=npy(HEADER % "10**9,", bytes(8))), r"array 'x': not a \.npy array"),
    "too much": (archive(x=npy(HEADER % "1000000000, 9", bytes(8))), r"array 'x': 8 bytes, its header says float64"),
    "negative": (archive(x=npy(HEADER % "-1,", bytes(8))), r"array 'x': (8 bytes, its header|not a \.npy)"),
    "no header": (archive(x=b"abc"), r"array 'x': not a \.npy array"),
    "one axis": (npz(x=np.zeros(9), y=np.zeros(9)), r"array 'x' is float64 \[[0-9]\], expected two axes"),
    "shapes": (
        npz(x_train=np.zeros((3, 2)), y_train=np.zeros(3), x_test=np.zeros((3, 4)), y_test=np.zeros(3)),
        r"samples to train on and to test on have other shapes: \[2\] and \[4\]",
    ),
}
GOOD_WAV = wav(np.zeros((9, 1)))
SOUNDS = {
    "rate": (wav(np.zeros((9, 1)), rate=80), r"0\.wav: 80 samples a second, expected 100; resample it"),
    "cut off": (GOOD_WAV[:-4], r"0\.wav: \d+ bytes of samples, its header says 9|not a \.wav"),
    "floats": (GOOD_WAV[:20] + b"\x03\x00" + GOOD_WAV[22:], r"0\.wav: not a \.wav file of whole numbers"),
    "another": (b"OggS" + bytes(60), r"0\.wav: not a \.wav file of whole numbers"),
    "nothing": (b"", r"0\.wav: not a \.wav file"),
    "no samples": (wav(np.zeros((0, 1))), r"0\.wav: 0 bytes of samples"),
    "channels": (GOOD_WAV[:22] + b"\xff\xff" + GOOD_WAV[24:], r"0\.wav: "),
}


def refused(call: Callable[[], Data], words: str) -> None:
    with pytest.raises(DataError, match=words):
        call().test[0]


@pytest.mark.parametrize(("content", "words"), TS.values(), ids=TS)
def test_damaged_series_are_refused(content: str | bytes, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a_TRAIN.ts", content)
    write(tmp_path / "a_TEST.ts", TS_HEADER + "1,2:3,4:up\n")
    refused(lambda: load_data("ts", tmp_path), words)


@pytest.mark.parametrize(("content", "words"), TABLES.values(), ids=TABLES)
def test_damaged_tables_are_refused(content: str | bytes, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", content)
    refused(lambda: load_data("table", file, target="way"), words)


@pytest.mark.parametrize(("content", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_damaged_archives_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", content)
    refused(lambda: load_data("npz", file, test_share=0.5), words)


@pytest.mark.parametrize(("content", "words"), SOUNDS.values(), ids=SOUNDS)
def test_damaged_sounds_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part / "a" / "0.wav", GOOD_WAV if part == "train" else content)
    refused(lambda: load_data("wav", tmp_path, rate=100, seconds=0.09), words)


def test_large_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERIES_BYTES", "TEXT_BYTES", "TABLE_BYTES", "ARCHIVE_BYTES"):
        monkeypatch.setattr(limits, name, 60)
    write(tmp_path / "a_TRAIN.ts", TS_HEADER + "1,2:up\n")
    write(tmp_path / "a_TEST.ts", TS_HEADER + "1,2:up\n")
    refused(lambda: load_data("ts", tmp_path), r"a_TRAIN\.ts: cannot be read .*at most 60 are read")
    refused(lambda: load_data("text", write(tmp_path / "t.txt", "a" * 61)), r"t\.txt: cannot be read .*at most 60")
    refused(lambda: load_data("table", write(tmp_path / "t.csv", CSV), target="way"), "at most 60 are read")
    refused(lambda: load_data("npz", write(tmp_path / "a.npz", npz(x=np.zeros(99)))), "at most 60 are read")


def test_a_table_of_too_many_cells_or_inputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "t.csv", CSV)
    monkeypatch.setattr(limits, "DATA_VALUES", 14)
    refused(lambda: load_data("table", file, target="way"), "3 inputs a row are too many")
    monkeypatch.setattr(limits, "TABLE_CELLS", 9)
    refused(lambda: load_data("table", file, target="way"), "more than 9 cells")


def test_series_as_long_as_the_longest_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("TRAIN", "TEST"):
        write(tmp_path / f"a_{part}.ts", TS_HEADER + "1,2,3:up\n1:down\n")
    monkeypatch.setattr(limits, "DATA_VALUES", 11)
    refused(lambda: load_data("ts", tmp_path), "data set 'ts': 12 values, all samples of one shape, are more than 11")


# ---- what is read ----


def test_series_are_normalised_by_the_training_part_and_padded_by_the_mean(tmp_path: Path) -> None:
    write(tmp_path / "a_TRAIN.ts", TS_HEADER + "1,3:5,5:up\n5:5:down\n")
    write(tmp_path / "a_TEST.ts", TS_HEADER + "4,4,4:6,6,6:down\n")
    data = load_data("ts", tmp_path)
    deviation = np.std([1, 3, 5])
    assert torch.allclose(data.train[0][0], torch.tensor([[-2 / deviation, 0, 0], [0, 0, 0]]).float())
    assert torch.allclose(data.test[0][0], torch.tensor([[1 / deviation] * 3, [1.0] * 3]).float())
    assert [data.train[0][1], data.train[1][1], data.test[0][1]] == [0, 1, 1]


def test_a_table_gives_numbers_categories_and_classes(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write(tmp_path / "p" / "train.csv", CSV)
    write(tmp_path / "p" / "test.csv", "size,colour,way\n2,red,down\n")
    data = load_data("table", tmp_path / "p", target="way")
    sizes = np.array([1.5, 2.5, 3.5, 0.5, 2])
    assert data.class_names == ("down", "up")
    assert data.test[0][1] == 0
    assert torch.allclose(data.test[0][0], torch.tensor([(2 - sizes.mean()) / sizes.std(), 0, 1]).float())
    assert data.preprocessing["columns"] == [
        {"column": "size", "kind": "number"},
        {"column": "colour", "kind": "one-hot", "values": ["blue", "red"]},
    ]
    coded = load_data("table", tmp_path / "p", target="way", encoding="codes", drop="size")
    assert coded.test[0][0].tolist() == [1.0]
    write(tmp_path / "p" / "test.csv", "size,colour,way\n2,green,down\n")
    refused(
        lambda: load_data("table", tmp_path / "p", target="way"), "line 2, column 'colour': got 'green', expected one"
    )


def test_targets_of_a_table(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "a,b,c\n" + "\n".join(f"{n},{n % 2},{n % 3}" for n in range(10)))
    values = load_data("table", file, target=["a", "b"])
    assert (values.task, values.outputs, values.shape, values.class_names) == ("regression", 2, (1,), ("a", "b"))
    assert values.train[0][1].dtype == torch.float32
    classes = load_data("table", file, target="c", task="classification")
    assert classes.class_names == ("0", "1", "2")
    labels = load_data("table", file, target="b", task="multi-label")
    assert labels.train.targets.sum() + labels.test.targets.sum() == 5  # type: ignore[attr-defined]
    refused(
        lambda: load_data("table", file, target="c", task="multi-label"), "line 4, column 'c': got 2, expected 0 or 1"
    )
    for options, words in (
        ({}, "needs the option target"),
        ({"target": "d"}, "no column 'd'; its columns: a, b, c"),
        ({"target": ["a", "b", "c"]}, "no column is left as input"),
        ({"target": ["a", "b"], "task": "classification"}, "classification has one target column"),
    ):
        with pytest.raises(UsageError, match=words):
            load_data("table", file, **options)
    refused(lambda: load_data("table", file, target="a", drop="d"), "no column 'd' to drop")


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    if find_spec("pyarrow") is None:
        with pytest.raises(MissingDependencyError, match=r"subbyte\[tables\]"):
            read_table(write(tmp_path / "t.parquet", b""))
        skip_for_lack_of("pyarrow")
    import pyarrow
    from pyarrow import parquet

    columns = {"size": [1.5, 2.5, 3.5, 0.5, 2], "colour": ["red", "blue", "red", "blue", "red"]}
    way = ["up", "down", "up", "down", "up"]
    parquet.write_table(pyarrow.table({**columns, "way": way}), tmp_path / "t.parquet")
    one, other = (
        load_data("table", path, target="way") for path in (tmp_path / "t.parquet", write(tmp_path / "t.csv", CSV))
    )
    assert one.preprocessing == other.preprocessing
    assert all(np.array_equal(a, b) for a, b in zip(one.test_arrays(), other.test_arrays(), strict=True))
    for column, words in (
        ([1.5, None, 3, 4, 5], "row 2, column 'size': got null"),
        ([1.5, 2, float("nan"), 4, 5], "row 3, column 'size': got nan"),
        ([[1]] * 5, "column 'size' is of list"),
    ):
        parquet.write_table(pyarrow.table({"size": column, "way": way}), tmp_path / "t.parquet")
        refused(lambda: load_data("table", tmp_path / "t.parquet", target="way"), words)
    refused(lambda: load_data("table", write(tmp_path / "t.parquet", b"PAR1"), target="way"), "not a Parquet file")


def test_arrays_become_pixels_values_and_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 2, 4, 4)).astype(np.uint8), np.arange(20) % 3
    images = load_data("npz", write(tmp_path / "a.npz", npz(x=pixels, y=labels)))
    assert (images.shape, images.outputs, len(images.test)) == ((2, 4, 4), 3, 4)  # type: ignore[arg-type]
    inputs, _ = images.train.batch(slice(None))  # type: ignore[attr-defined]
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(inputs.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5)
    raw = load_data("npz", tmp_path / "a.npz", normalize=False)
    assert raw.normalization is None
    assert set(np.unique(raw.test_arrays()[0])) <= set(range(256))
    tokens = rng.integers(0, 50, (20, 9))
    text = load_data("npz", write(tmp_path / "a.npz", npz(x=tokens[:, :8], y=tokens[:, 1:])), task="language-modelling")
    assert (text.dtype, text.shape, text.outputs) == ("int64", (8,), 1 + tokens.max())
    values = npz(x_train=np.ones((3, 2)), y_train=np.ones((3, 2)), x_test=np.ones((1, 2)), y_test=np.zeros((1, 2)))
    forecast = load_data("npz", write(tmp_path / "a.npz", values), task="regression")
    assert (forecast.outputs, len(forecast.train), len(forecast.test)) == (2, 3, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["C", "F"])
def test_archives_hold_what_numpy_reads(order: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    arrays = {
        "x": np.asarray(np.arange(24.0).reshape(2, 3, 4), order=order),
        "y": np.arange(4, dtype=">i2"),
        "e": np.zeros(0),
    }
    np.savez_compressed(file, **arrays)
    for name, values in read_npz(file).items():
        assert np.array_equal(values, arrays[name])
        assert values.dtype == arrays[name].dtype


@pytest.mark.parametrize("width", [1, 2, 4])
def test_sounds_are_what_scipy_reads(width: int, tmp_path: Path) -> None:
    largest = 1 << (8 * width - 1)
    samples = np.random.default_rng(width).integers(-largest, largest, (50, 2)) + (largest if width == 1 else 0)
    file = write(tmp_path / "0.wav", wav(samples, width=width))
    rate, known = wavfile.read(file)
    assert rate == 100
    levels = (known.astype(np.float64) - (128 if width == 1 else 0)) / largest
    assert np.allclose(read_wav(file, 100, 99), levels.mean(1), atol=1e-7)
    assert np.allclose(read_wav(file, 100, 20), levels[15:35].mean(1), atol=1e-7)


def test_24_bits_and_padding(tmp_path: Path) -> None:
    content = wav(np.zeros((6, 1)))  # 12 bytes of samples: four of three bytes
    head = bytearray(content[:44])
    head[32:36] = struct.pack("<HH", 3, 24)
    for part in ("train", "test"):
        write(tmp_path / part / "a" / "0.wav", bytes(head) + bytes([0, 0, 0x80, 0, 0, 0x40, 0xFF, 0xFF, 0xFF, 0, 0, 0]))
    sound = load_data("wav", tmp_path, rate=100, seconds=0.06).train[0][0]
    assert sound.tolist() == [[-1.0, 0.5, -(2.0**-23), 0.0, 0.0, 0.0]]


def test_a_list_names_sounds(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / "s" / f"{number}.wav", wav(np.full((9, 1), 1000 * number)))
    rows = [f"s/{number}.wav,{'even' if number % 2 == 0 else 'odd'}" for number in range(5)]
    file = write(tmp_path / "list.csv", "\n".join(["file,label", *rows]))
    data = load_data("wav", file, rate=100, seconds=0.05)
    assert (data.class_names, len(data.train), len(data.test)) == (("even", "odd"), 4, 1)  # type: ignore[arg-type]
    write(file, "\n".join(["file,label,part", *(f"{row},{'test' if row > 's/2' else 'train'}" for row in rows)]))
    assert [label for _, label in load_data("wav", file, rate=100, seconds=0.05).test.files] == [0, 1, 0]  # type: ignore[attr-defined]
    write(file, "file,label,part\ns/0.wav,even,trial\n")
    refused(lambda: load_data("wav", file), "line 2, column 'part': got 'trial', expected train or test")
    refused(lambda: load_data("wav", write(file, "name,label\ns/0.wav,even\n")), "no column 'file'")


def test_folders_without_a_test_part_are_split_by_name(tmp_path: Path) -> None:
    write_images(tmp_path / "made")
    classes = tmp_path / "made" / "train"
    for number in range(20):
        (classes / "cat" / f"c{number}.png").write_bytes((classes / "cat" / "0.png").read_bytes())
    data = load_data("imagefolder", classes, size=8)
    parts = [{str(file) for file, _ in part.files} for part in (data.train, data.test)]  # type: ignore[attr-defined]
    assert len(parts[0] | parts[1]) == len(parts[0]) + len(parts[1]) == 24
    (classes / "cat" / "new.png").write_bytes((classes / "cat" / "0.png").read_bytes())
    again = load_data("imagefolder", classes, size=8)
    assert parts[1] <= {str(file) for file, _ in again.test.files}  # type: ignore[attr-defined]


# ---- text ----


def test_windows_follow_each_other_and_predict_the_next_token(tmp_path: Path) -> None:
    file = write(tmp_path / "t.txt", bytes(range(100)))
    data = load_data("text", file, context=8, test_share=0.25)
    train, test = (torch.cat([part[index][0] for index in range(len(part))]) for part in (data.train, data.test))  # type: ignore[arg-type]
    assert train.tolist() == list(range(72))
    assert test.tolist() == list(range(75, 99))
    window, following = data.train[-1]
    assert following.tolist() == [*window[1:].tolist(), 72]
    assert data.task_options == {"unit": "byte"}
    refused(
        lambda: load_data("text", file, context=30), "the test text has 20 tokens in 1 files, too few for one window"
    )


def test_a_text_is_not_cut_within_a_character(tmp_path: Path) -> None:
    file = write(tmp_path / "t.txt", "ä" * 51)
    data = load_data(
        "text", file, context=1, test_share=0.5, tokenizer=lambda text: [ord(one) for one in text], vocabulary=300
    )
    assert set(data.test_arrays()[0].ravel().tolist()) == {ord("ä")}


def test_files_of_a_text_are_held_out_by_name(tmp_path: Path) -> None:
    path, options = write_text(tmp_path)
    before = load_data("text", path, **options)
    write(tmp_path / "more.txt", "some more of it, as long as a window")
    after = load_data("text", path, **options)
    lengths = [[len(part.tokens) for part in (data.train, data.test)] for data in (before, after)]  # type: ignore[attr-defined]
    assert sum(lengths[1]) - sum(lengths[0]) == 36
    assert 0 in np.subtract(lengths[1], lengths[0])


def test_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a function from a text to tokens, and how many"):
        tokenizer_of(str.split, None)
    with pytest.raises(UsageError, match="knows its vocabulary"):
        tokenizer_of("bytes", 3)
    with pytest.raises(
        DataError, match=r"t\.txt: the tokenizer gives int64 from 0 to 9, expected whole numbers from 0 to 4"
    ):
        tokenizer_of(lambda text: range(10), 5).encode(b"a", "t.txt")
    with pytest.raises(DataError, match=r"t\.txt: byte 1 is not UTF-8"):
        tokenizer_of(lambda text: [0], 5).encode(b"a\xff", "t.txt")
    assert ByteTokenizer().decode(ByteTokenizer().encode("grün".encode(), "").tolist()) == "grün"


def test_a_tokenizer_of_hugging_face(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "[UNK]": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    file = write(
        tmp_path / "tokenizer.json",
        json.dumps({"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}}),
    )
    if find_spec("tokenizers") is None:
        with pytest.raises(MissingDependencyError, match=r"subbyte\[text\]"):
            tokenizer_of(str(file), None)
        skip_for_lack_of("tokenizers")
    data = load_data("text", write(tmp_path / "t.txt", "a b c a b\n" * 20), context=5, tokenizer=str(file))
    assert data.outputs == 3
    assert data.train[0][0].tolist() == [0, 1, 2, 0, 1]
    assert data.preprocessing["tokenizer"]["file"] == "tokenizer.json"
    with pytest.raises(DataError, match=r"bad\.json: no tokenizer\.json"):
        tokenizer_of(str(write(tmp_path / "bad.json", "{}")), None)


# ---- objects of a program ----


def test_objects_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "my_sets.py", "class Sets:\n    number = 3\n\nfaulty = 1 / 0 if __name__ == 'x' else 2\n")
    write(tmp_path / "faulty_sets.py", "1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert import_named("my_sets:Sets.number") == 3
    assert sys.path == before
    for name, words in (
        ("my_sets:Other", "AttributeError"),
        ("no_sets:x", "ModuleNotFoundError"),
        ("faulty_sets:x", r"ZeroDivisionError: division by zero"),
        ("a.csv", "expected package.module:name"),
    ):
        with pytest.raises(UsageError, match=words):
            import_named(name)
    with pytest.raises(SubbyteError, match="is a int, expected a Data or a pair"):
        load_data("dataset", "my_sets:faulty")


def test_options_that_a_file_records_run_no_code(tmp_path: Path) -> None:
    file = write(tmp_path / "t.txt", "touch it\n" * 9)
    with pytest.raises(UsageError, match="the file's option 'tokenizer' names code, 'os:system', which is not run"):
        load_recorded("text", file, {"tokenizer": "os:system", "vocabulary": 3})
    assert load_recorded("text", file, {"context": 4}).shape == (4,)
    for name in ("signals", "shapes"):
        refused(lambda name=name: load_recorded(name, None, {"samples": 10**9}), f"data set '{name}': .* are more than")

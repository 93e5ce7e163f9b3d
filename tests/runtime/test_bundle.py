"""Bundles: what is written is what is read, mapped where it must be, and the manifest is checked field by field."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import tiny_manifest, tiny_members

from subbyte.errors import BundleError, UsageError
from subbyte.runtime import archive, manifest
from subbyte.runtime.bundle import ALIGNMENT, open_bundle, write_bundle

NAMES = st.from_regex(r"\A[A-Za-z0-9_-]{1,12}(/[A-Za-z0-9_-]{1,12})?\Z")


def test_round_trip(bundle_path: Path, library: bytes) -> None:
    with open_bundle(bundle_path) as bundle:
        for name, data in tiny_members(library).items():
            assert bundle.read(name) == data
            assert bundle.manifest.members[name].sha256 == hashlib.sha256(data).hexdigest()
        assert bundle.manifest.macs == 48
        assert bundle.manifest.operators[2].outputs[0].space == "output"
        assert bundle.raw["source"] == {"scheme": "ternary", "model": "tiny"}


def test_any_zip_tool_reads_it(bundle_path: Path, library: bytes) -> None:
    with zipfile.ZipFile(bundle_path) as file:
        assert file.testzip() is None
        assert file.namelist()[0] == "manifest.json"
        assert file.read("library.so") == library
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())


def test_same_members_give_the_same_file(bundle_path: Path, tmp_path: Path, library: bytes) -> None:
    again = write_bundle(tmp_path / "again.subbyte", tiny_manifest(), tiny_members(library))
    assert again.read_bytes() == bundle_path.read_bytes()


def test_library_and_weights_are_mapped_on_a_page(bundle_path: Path) -> None:
    with open_bundle(bundle_path) as bundle:
        for name in ("library.so", "weights.bin"):
            assert bundle.entries[name].offset % ALIGNMENT == 0
            with bundle.map(name) as view:
                array = np.frombuffer(view, np.uint8)
                assert array.ctypes.data % ALIGNMENT == 0
                assert not array.flags.writeable
                del array


def test_a_view_outlives_the_bundle(bundle_path: Path, library: bytes) -> None:
    bundle = open_bundle(bundle_path)
    view = bundle.map("library.so")
    bundle.close()
    assert view == library
    with pytest.raises(BundleError, match="closed"):
        bundle.map("library.so")


def test_members_from_files(tmp_path: Path, library: bytes) -> None:
    (tmp_path / "lib").write_bytes(library)
    members = {**tiny_members(library), "library.so": tmp_path / "lib"}
    with open_bundle(write_bundle(tmp_path / "b.subbyte", tiny_manifest(), members)) as bundle:
        assert bundle.read("library.so") == library


def test_a_failed_write_leaves_the_old_bundle_and_no_partial_file(bundle_path: Path, library: bytes) -> None:
    before = bundle_path.read_bytes()
    wrong = {**tiny_manifest(), "weights_bytes": 64}
    with pytest.raises(BundleError, match="128 bytes, the manifest says 64"):
        write_bundle(bundle_path, wrong, tiny_members(library))
    assert bundle_path.read_bytes() == before
    assert os.listdir(bundle_path.parent) == [bundle_path.name]


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="subbyte compile"):
        open_bundle(tmp_path / "none.subbyte")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(tmp_path)


def test_read_checks_the_hash_of_the_copy(bundle_path: Path) -> None:
    with open_bundle(bundle_path) as bundle:
        with open(bundle_path, "r+b") as file:
            file.seek(bundle.entries["library.so"].offset + 100)
            file.write(b"\xff\xff")
        with pytest.raises(BundleError, match=r"'library\.so' changed"):
            bundle.read("library.so")


@given(st.dictionaries(NAMES, st.binary(max_size=300), min_size=1, max_size=6))
def test_archive_round_trip(tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes]) -> None:
    folders = {name.split("/")[0].lower() for name in members if "/" in name}
    names = [name.lower() for name in members]
    if len(set(names)) != len(names) or folders & set(names):
        return
    path = tmp_path_factory.mktemp("archive") / "a.zip"
    payloads = [
        archive.NewMember(name, len(data), archive_crc(data), lambda data=data: [data], aligned=len(data) % 2 == 0)
        for name, data in members.items()
    ]
    with open(path, "wb") as file:
        archive.write_entries(file, payloads)
    with open(path, "rb") as file:
        entries = archive.read_entries(file, path.stat().st_size)
        for payload in payloads:
            entry = entries[payload.name]
            file.seek(entry.offset)
            assert file.read(entry.size) == members[payload.name]
            assert not payload.aligned or entry.offset % ALIGNMENT == 0
    with zipfile.ZipFile(path) as zipped:
        assert {name: zipped.read(name) for name in zipped.namelist()} == members


def archive_crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


@given(st.integers(0, 1 << 31))
def test_padding_reaches_the_next_page(position: int) -> None:
    assert (position + len(archive._padding(position))) % ALIGNMENT == 0


# ---- the manifest ----

WRONG: list[tuple[str, Any]] = [
    ("schema", 2),
    ("schema", "1"),
    ("schema", True),
    ("name", None),
    ("name", "x" * 5000),
    ("versions", {"tvm": 1}),
    ("target", []),
    ("target.triple", 3),
    ("target.emitter", "magic"),
    ("target.features", "avx2"),
    ("target.features", [1]),
    ("inputs", {}),
    ("inputs.0.shape", [1, -3, 4, 4]),
    ("inputs.0.shape", [1, True, 4, 4]),
    ("inputs.0.shape", [1 << 31, 1 << 31]),
    ("inputs.0.shape", [1] * 20),
    ("inputs.0.dtype", "float128"),
    ("inputs.0.dtype", ["float32"]),
    ("outputs", []),
    ("outputs.1.name", "y"),
    ("arena_bytes", -1),
    ("arena_bytes", 1.5),
    ("arena_bytes", 1 << 40),
    ("weights_bytes", None),
    ("operators", None),
    ("operators.0", 3),
    ("operators.0.macs", "many"),
    ("operators.0.bits_per_weight", "2"),
    ("operators.0.bits_per_weight", -1.0),
    ("operators.0.fallback", 1),
    ("operators.0.per_element", [1]),
    ("operators.0.per_mac", [1]),
    ("operators.0.per_mac", {"int32 add": -1}),
    ("operators.0.per_element", {"int32 add": -1}),
    ("operators.0.per_element", {"int32 add": True}),
    ("operators.0.outputs.0.offset", 100),
    ("operators.0.outputs.0.bytes", 47),
    ("operators.0.outputs.0.dtype", "int8"),
    ("operators.0.outputs.0.space", "moon"),
    ("operators.0.outputs.0.layout", "NWHC"),
    ("operators.1.outputs.0.channels", 40),
    ("operators.2.outputs.0.offset", 2),
    ("operators.2.outputs.0.offset", 1),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda v: str(v)[:30])
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    data = copy.deepcopy(tiny_manifest())
    place: Any = data
    *parents, last = field.split(".")
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    with pytest.raises(BundleError, match=r"subbyte compile") as caught:
        manifest.from_dict({**data, "members": {}})
    assert parents[0] if parents else last in str(caught.value)


def test_unknown_keys_are_kept_and_ignored() -> None:
    data = {**tiny_manifest(), "members": {}, "later": {"deep": [1]}}
    assert manifest.from_dict(data) == manifest.from_dict({**tiny_manifest(), "members": {}})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 9999 + b"}",
    ],
    ids=lambda v: v[:12].decode("latin1"),
)
def test_bad_json_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest"):
        manifest.from_dict(manifest.load(text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_value_in_any_field_is_accepted_or_a_bundle_error(data: st.DataObject) -> None:
    whole = {**copy.deepcopy(tiny_manifest()), "members": {"a": {"bytes": 1, "sha256": "0" * 64}}}
    place: Any = whole
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    with contextlib.suppress(BundleError):
        manifest.from_dict(whole)

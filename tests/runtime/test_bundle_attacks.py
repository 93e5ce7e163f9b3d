"""Hostile and damaged bundles: each is a BundleError, and nothing native is loaded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import tiny_manifest

from subbyte.errors import BundleError
from subbyte.files.kinds import kind_of
from subbyte.runtime import load
from subbyte.runtime.archive import MAX_BUNDLE_BYTES
from subbyte.runtime.bundle import open_bundle, write_bundle

Members = list[tuple[zipfile.ZipInfo, bytes]]


def members_of(path: Path | io.BytesIO) -> Members:
    with zipfile.ZipFile(path) as file:
        return [(info, file.read(info)) for info in file.infolist()]


def rezip(path: Path, members: Members, method: int = zipfile.ZIP_STORED) -> None:
    """Write members with the standard library, keeping the alignment padding that the directory does not show."""
    with zipfile.ZipFile(path, "w") as file:
        for info, data in members:
            file.writestr(info, data, compress_type=method)


def directory(data: bytes) -> int:
    return struct.unpack_from("<I", data, len(data) - 6)[0]


def refused(path: Path, match: str) -> str:
    """The bundle is refused by the reader and by load; returns the message."""
    with pytest.raises(BundleError, match=match) as caught:
        load(path, threads=1)
    with pytest.raises(BundleError):
        open_bundle(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count(f"bundle '{path}'") <= 1
    assert "/proc/self/fd" not in Path("/proc/self/maps").read_text()
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 21, 22, 100, 4000, 0.5, 0.9, -1, -22, -23])
def test_truncated(bundle_path: Path, keep: float) -> None:
    data = bundle_path.read_bytes()
    bundle_path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(bundle_path, "truncated|too few|missing or added")


def test_rezipped_with_compression(bundle_path: Path) -> None:
    rezip(bundle_path, members_of(bundle_path), zipfile.ZIP_DEFLATED)
    assert "subbyte compile" in refused(bundle_path, "compressed.*re-zipped")


def test_rezipped_without_alignment(bundle_path: Path) -> None:
    rezip(bundle_path, members_of(bundle_path))
    refused(bundle_path, "multiple of 4096.*re-zipped")


def test_rezipped_as_a_stream(bundle_path: Path) -> None:
    members = members_of(bundle_path)

    class Stream(io.RawIOBase):
        """A file that cannot seek, which makes zipfile write sizes after the data."""

        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += data
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as file:  # type: ignore[arg-type]
        for info, data in members:
            file.writestr(info.filename, data)
    bundle_path.write_bytes(stream.data)
    refused(bundle_path, "stream")


@pytest.mark.parametrize("member", ["library.so", "weights.bin", "report.json", "golden/input_0.npy"])
def test_a_member_was_changed(bundle_path: Path, member: str) -> None:
    with open_bundle(bundle_path) as bundle:
        entry = bundle.entries[member]
    with open(bundle_path, "r+b") as file:
        file.seek(entry.offset + entry.size - 1)
        file.write(b"\xee")
    refused(bundle_path, f"'{member}' is damaged: its SHA-256")


def test_the_manifest_was_changed(bundle_path: Path) -> None:
    data = bundle_path.read_bytes()
    bundle_path.write_bytes(data.replace(b'"arena_bytes": 128', b'"arena_bytes": 129', 1))
    refused(bundle_path, "CRC-32")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a/../b",
        "..",
        "C:\\x",
        "a\\b",
        "a/b/c",
        "./a",
        "a b",
        "a\n",
        "é",
        "x\0y",
        "",
        "a/",
        "~",
    ],
)
def test_bad_names(bundle_path: Path, name: str) -> None:
    members = members_of(bundle_path)
    info = zipfile.ZipInfo("placeholder!")
    info.filename = name
    rezip(bundle_path, [*members, (info, b"x")])
    refused(bundle_path, "is not allowed")


def test_a_name_that_only_the_local_header_has(bundle_path: Path) -> None:
    patch_rows(bundle_path, "report.json", local=(30, b"../port.jso"), central=(46, b"report.json"))
    refused(bundle_path, "disagrees")


def test_a_name_that_only_the_directory_has(bundle_path: Path) -> None:
    patch_rows(bundle_path, "report.json", local=(30, b"report.json"), central=(46, b"reporu.json"))
    refused(bundle_path, "disagrees")


def test_duplicates(bundle_path: Path) -> None:
    members = members_of(bundle_path)
    with pytest.warns(UserWarning, match="Duplicate"):
        rezip(bundle_path, [*members, members[-1]])
    refused(bundle_path, "occurs twice")


def test_names_that_differ_only_in_case(bundle_path: Path) -> None:
    rezip(bundle_path, [*members_of(bundle_path), (zipfile.ZipInfo("Library.SO"), b"x")])
    refused(bundle_path, "occurs twice")


def test_a_file_that_is_a_folder_too(bundle_path: Path) -> None:
    rezip(bundle_path, [*members_of(bundle_path), (zipfile.ZipInfo("golden"), b"x")])
    refused(bundle_path, "both a member and a folder")


@pytest.mark.parametrize("mode", [0o120777, 0o040755, 0o020666, 0o010666, 0o060666, 0o140777])
def test_links_folders_and_devices(bundle_path: Path, mode: int) -> None:
    members = members_of(bundle_path)
    members[-1][0].external_attr = mode << 16
    rezip(bundle_path, members)
    refused(bundle_path, "link, folder or device")


def test_encrypted(bundle_path: Path) -> None:
    patch_rows(bundle_path, "report.json", local=(6, b"\x01\x00"), central=(8, b"\x01\x00"))
    refused(bundle_path, "encrypted")


def test_an_unlisted_member(bundle_path: Path) -> None:
    append(bundle_path, "extra.bin", b"hidden")
    refused(bundle_path, r"'extra\.bin' must not be there")


def test_a_second_library_under_another_name(bundle_path: Path, library: bytes) -> None:
    append(bundle_path, "library2.so", library)
    refused(bundle_path, r"'library2\.so' must not be there")


@pytest.mark.parametrize("member", ["weights.bin", "library.so", "manifest.json"])
def test_a_missing_member(bundle_path: Path, member: str) -> None:
    rezip(bundle_path, [(info, data) for info, data in members_of(bundle_path) if info.filename != member])
    refused(bundle_path, f"'{member}'")


def test_bytes_before_between_and_after(bundle_path: Path) -> None:
    data = bundle_path.read_bytes()
    end = directory(data)
    for changed in (b"MZ" + data, data + b"x", data[:end] + b"x" + data[end:], data + data):
        bundle_path.write_bytes(changed)
        refused(bundle_path, "missing or added|no zip directory|overlap|does not follow|belong to no|no member header")


def test_bytes_that_belong_to_no_member(bundle_path: Path) -> None:
    data = bundle_path.read_bytes()
    at = directory(data)
    tail = bytearray(data[at:])
    struct.pack_into("<I", tail, len(tail) - 6, at + 5)
    bundle_path.write_bytes(data[:at] + b"stash" + tail)
    refused(bundle_path, "belong to no member")


def test_overlapping_members(bundle_path: Path) -> None:
    with open_bundle(bundle_path) as bundle:
        names = bundle.members
    data = bytearray(bundle_path.read_bytes())
    first, second = row_of(data, names[1]), row_of(data, names[2])
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    bundle_path.write_bytes(data)
    refused(bundle_path, "overlaps")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
def test_a_declared_size_beyond_the_file(bundle_path: Path, size: int) -> None:
    declared = struct.pack("<II", size, size)
    patch_rows(bundle_path, "weights.bin", local=(18, declared), central=(20, declared))
    refused(bundle_path, "more than the file holds")


def test_a_zip_bomb(bundle_path: Path) -> None:
    rezip(bundle_path, [*members_of(bundle_path), (zipfile.ZipInfo("bomb"), bytes(50 << 20))], zipfile.ZIP_DEFLATED)
    assert bundle_path.stat().st_size < 1 << 20
    refused(bundle_path, "compressed")


def test_a_sparse_file_over_the_limit(bundle_path: Path) -> None:
    with open(bundle_path, "r+b") as file:
        file.truncate(MAX_BUNDLE_BYTES + 1)
    refused(bundle_path, "at most")


def test_too_many_members(bundle_path: Path) -> None:
    extra = [(zipfile.ZipInfo(f"m{i}"), b"") for i in range(256)]
    rezip(bundle_path, [*members_of(bundle_path), *extra])
    refused(bundle_path, "expected 1 to 256")


def test_zip64(bundle_path: Path) -> None:
    members = members_of(bundle_path)
    members[-1][0].extra = struct.pack("<HHQQ", 1, 16, 128, 128)
    rezip(bundle_path, members)
    refused(bundle_path, "zip64")


def test_a_comment_that_hides_another_directory(bundle_path: Path) -> None:
    with zipfile.ZipFile(bundle_path, "a") as file:
        file.comment = b"PK\x05\x06" + bytes(18)
    refused(bundle_path, "truncated|missing or added|expected 1 to 256")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"schema": 1}', b'{"schema": 99}', b"[" * 50_000])
def test_a_manifest_that_is_none(bundle_path: Path, text: bytes) -> None:
    members = members_of(bundle_path)
    rezip(bundle_path, [(info, text if info.filename == "manifest.json" else data) for info, data in members])
    refused(bundle_path, "manifest")


@pytest.mark.parametrize("programs", [[], None, [{"features": ["avx2"], "library": "x86-64-v3/library.so"}]])
def test_programs_of_several_feature_levels_are_reserved(bundle_path: Path, programs: object) -> None:
    with open_bundle(bundle_path) as bundle:
        text = json.dumps({**bundle.raw, "programs": programs}).encode()
    members = members_of(bundle_path)
    rezip(bundle_path, [(info, text if info.filename == "manifest.json" else data) for info, data in members])
    refused(bundle_path, "'programs' is for bundles with several CPU .* Update subbyte, or compile")
    with pytest.raises(BundleError, match="'programs'"):
        write_bundle(bundle_path, {**tiny_manifest(), "programs": programs}, {})


def test_a_hash_of_another_member(bundle_path: Path) -> None:
    def swap(members: dict[str, Any]) -> None:
        members["report.json"]["sha256"] = members["weights.bin"]["sha256"]

    rewrite_manifest(bundle_path, swap)
    refused(bundle_path, r"'report\.json' is damaged")


def test_a_size_that_the_manifest_denies(bundle_path: Path) -> None:
    rewrite_manifest(bundle_path, lambda members: members["report.json"].update(bytes=3))
    refused(bundle_path, "has 2 bytes, expected 3")


def test_a_path_that_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "fifo.subbyte"
    os.mkfifo(path)
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(path)


def test_a_version_of_zip_that_no_reader_knows(bundle_path: Path) -> None:
    """The message looks at the kind of file again, with Python's reader, which raises NotImplementedError."""
    patch_rows(bundle_path, "report.json", local=(4, b"\xff"), central=(6, b"\xff"))
    refused(bundle_path, "zip features")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_archive_is_still_of_some_kind(bundle_path: Path, data: st.DataObject) -> None:
    good = good_bytes(bundle_path)
    at = data.draw(st.integers(4, len(good) - 1) | st.integers(len(good) - 700, len(good) - 1))
    bundle_path.write_bytes(good[:at] + data.draw(st.binary(min_size=1, max_size=9)) + good[at + 1 :])
    assert kind_of(bundle_path) in ("a .subbyte bundle", "a damaged .subbyte bundle", "a zip archive")


def test_a_path_with_a_null_byte() -> None:
    with pytest.raises(BundleError, match="null byte"):
        open_bundle("a\0b")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_byte_flips_never_go_unseen(bundle_path: Path, data: st.DataObject) -> None:
    """A flipped byte is refused, or (in a time stamp, a version or padding) changes nothing that is read."""
    good = good_bytes(bundle_path)
    at = data.draw(st.integers(0, len(good) - 1) | st.integers(len(good) - 700, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    bundle_path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    with contextlib.suppress(BundleError), open_bundle(bundle_path) as bundle:
        for info, member in members_of(io.BytesIO(good)):
            assert bundle.read(info.filename) == member
        assert {**bundle.raw, "members": None} == {**tiny_manifest(), "members": None}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cuts_and_splices_never_crash(bundle_path: Path, data: st.DataObject) -> None:
    good = good_bytes(bundle_path)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 5000)))
    bundle_path.write_bytes(good[:start] + data.draw(st.binary(max_size=60)) + good[end:])
    try:
        open_bundle(bundle_path).close()
    except BundleError:
        return
    assert bundle_path.read_bytes() == good or end - start < 5000


_good: dict[str, bytes] = {}


def good_bytes(path: Path) -> bytes:
    """The bundle as it was before the first example changed it."""
    return _good.setdefault(str(path), path.read_bytes())


# ---- surgery ----


def row_of(data: bytes | bytearray, name: str) -> int:
    """Where the directory row of a member starts."""
    return bytes(data).rindex(name.encode()) - 46


def patch_rows(path: Path, name: str, local: tuple[int, bytes], central: tuple[int, bytes]) -> None:
    """Overwrite a field of a member's local header and of its directory row."""
    data = bytearray(path.read_bytes())
    row = row_of(data, name)
    header = struct.unpack_from("<I", data, row + 42)[0]
    for at, (offset, value) in ((header, local), (row, central)):
        data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)


def append(path: Path, name: str, payload: bytes) -> None:
    """Add a member behind the others, so that those stay aligned."""
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, payload)


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest's members in place, keeping its length and mending its CRC."""
    import zlib

    with open_bundle(path) as bundle:
        entry = bundle.entries["manifest.json"]
        old = bundle.read("manifest.json")
    manifest = json.loads(old)
    change(manifest["members"])
    text = json.dumps(manifest, indent=1).encode()
    assert len(text) <= len(old)
    data = bytearray(path.read_bytes())
    data[entry.offset : entry.offset + entry.size] = text + b" " * (len(old) - len(text))
    path.write_bytes(data)
    crc = struct.pack("<I", zlib.crc32(text + b" " * (len(old) - len(text))))
    patch_rows(path, "manifest.json", local=(14, crc), central=(16, crc))

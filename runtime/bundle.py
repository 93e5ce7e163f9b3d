"""Write and read `.subbyte` bundles; docs/bundle.md is the page of MUSTs that this file obeys.

`open_bundle` checks all of them, hashes included, before it hands out a byte. The hashes find damage, not malice: a
bundle is a program, so load only what you would also run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from subbyte.errors import BundleError, UsageError
from subbyte.file_kinds import ONNX, kind_of
from subbyte.output_file import output_file
from subbyte.plain_file import open_plain, size_of
from subbyte.runtime import archive
from subbyte.runtime import manifest as checks
from subbyte.runtime.archive import ALIGNMENT, MAX_BUNDLE_BYTES, MAX_MEMBERS, REBUILD, Payload
from subbyte.runtime.manifest import MAX_MANIFEST_BYTES, SCHEMA, Manifest

__all__ = [
    "ALIGNMENT",
    "LIBRARY",
    "MANIFEST",
    "MAX_BUNDLE_BYTES",
    "MAX_MANIFEST_BYTES",
    "MAX_MEMBERS",
    "SCHEMA",
    "WEIGHTS",
    "Bundle",
    "open_bundle",
    "write_bundle",
]

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
LIBRARY = "library.so"
BENCH = "bench"
ALIGNED = (WEIGHTS, LIBRARY)
EXECUTABLE = (BENCH, LIBRARY)
_CHUNK = 1 << 20


class Bundle:
    """An open bundle whose every hash has been checked; a context manager.

    `manifest` is the typed manifest, `raw` the same as parsed JSON with the keys that this version does not know.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        raw: Mapping[str, Any],
        entries: Mapping[str, archive.Entry],
        view: mmap.mmap,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.raw = raw
        self.entries = entries
        self._mmap: mmap.mmap | None = view

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members, the manifest too, in file order."""
        return tuple(self.entries)

    def map(self, member: str) -> memoryview:
        """The bytes of a member without a copy, read-only, valid while the bundle or the view lives.

        `weights.bin` and the library start on a page. Raises BundleError for a member that is not there.
        """
        if self._mmap is None:
            raise BundleError(f"bundle '{self.path}' is closed: open it again with open_bundle")
        entry = self.entries.get(member)
        if entry is None:
            raise BundleError(f"bundle '{self.path}' has no member '{member}'. It has: {', '.join(self.entries)}.")
        return memoryview(self._mmap)[entry.offset : entry.offset + entry.size]

    def read(self, member: str) -> bytes:
        """A copy of the bytes of a member, whose hash is checked again on the copy; raises BundleError."""
        with self.map(member) as view:
            data = bytes(view)
        if member != MANIFEST and hashlib.sha256(data).hexdigest() != self.manifest.members[member].sha256:
            raise BundleError(f"bundle '{self.path}': member '{member}' changed after it was opened. {REBUILD}")
        return data

    def close(self) -> None:
        """Unmap the file; views that are still held stay valid until they are dropped."""
        if self._mmap is not None:
            with contextlib.suppress(BufferError):  # a view is alive: the map goes with the last of them
                self._mmap.close()
            self._mmap = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        target = self.manifest.target
        return f"Bundle('{self.path}', model '{self.manifest.name}', target '{target.name}' ({target.emitter}))"


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and check every MUST of docs/bundle.md, hashes included; nothing native is loaded.

    Raises UsageError when there is no such file and BundleError, saying what is wrong and what to do, for a file that
    is truncated, re-zipped, damaged, hostile or of another schema.
    """
    path = Path(path)
    try:
        with open_plain(path) as file:
            size = size_of(file)
            entries = archive.read_entries(file, size)
            raw = _read_manifest(file, entries)
            checked = checks.from_dict(raw)
            _check_members(checked, entries)
            for name, member in checked.members.items():
                _check_hash(file, entries[name], member.sha256)
            view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except BundleError as error:
        if kind_of(path) == ONNX:
            raise BundleError(f"'{path}' is {ONNX}, not yet a bundle: `subbyte compile {path}` makes one") from error
        raise BundleError(f"bundle '{path}': {error}") from error
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no bundle '{path}'. Build one with `subbyte compile model.onnx -o {path}`."
        ) from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a null byte, or a file that shrank below its size before it was mapped
        raise BundleError(f"cannot read bundle '{path}': {error}") from error
    return Bundle(path, checked, raw, entries, view)


def _read_manifest(file: Any, entries: Mapping[str, archive.Entry]) -> dict[str, Any]:
    entry = entries.get(MANIFEST)
    if entry is None:
        raise BundleError(f"there is no member '{MANIFEST}': not a bundle, or a damaged one. {REBUILD}")
    if entry.size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} has {entry.size} bytes, at most {MAX_MANIFEST_BYTES} are allowed. {REBUILD}")
    file.seek(entry.offset)
    data = file.read(entry.size)
    if zlib.crc32(data) != entry.crc:
        raise BundleError(f"{MANIFEST} is damaged: its CRC-32 does not hold. {REBUILD}")
    return checks.load(data)


def _check_members(checked: Manifest, entries: Mapping[str, archive.Entry]) -> None:
    named = set(checked.members)
    found = set(entries) - {MANIFEST}
    if MANIFEST in named or found - named:
        extra = MANIFEST if MANIFEST in named else sorted(found - named)[0]
        raise BundleError(f"member '{extra}' must not be there: the manifest does not account for it. {REBUILD}")
    if named - found:
        raise BundleError(f"member '{min(named - found)}' is missing. {REBUILD}")
    for name, member in checked.members.items():
        if entries[name].size != member.bytes:
            raise BundleError(f"member '{name}' has {entries[name].size} bytes, expected {member.bytes}. {REBUILD}")
    for name in ALIGNED:
        if name in entries and entries[name].offset % ALIGNMENT:
            raise BundleError(
                f"member '{name}' starts at byte {entries[name].offset}, not at a multiple of {ALIGNMENT}: the bundle "
                f"was re-zipped. {REBUILD}"
            )
    if checked.target.emitter == "library" and LIBRARY not in named:
        raise BundleError(f"member '{LIBRARY}' is missing from a bundle of emitter 'library'. {REBUILD}")
    weights = checked.members[WEIGHTS].bytes if WEIGHTS in named else 0
    if weights != checked.weights_bytes and (WEIGHTS in named or checked.target.emitter == "library"):
        raise BundleError(f"{WEIGHTS} has {weights} bytes, the manifest says {checked.weights_bytes}. {REBUILD}")


def _check_hash(file: Any, entry: archive.Entry, expected: str) -> None:
    digest = hashlib.sha256()
    file.seek(entry.offset)
    left = entry.size
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise BundleError(f"the file ends inside member '{entry.name}'. {REBUILD}")
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest() != expected:
        raise BundleError(f"member '{entry.name}' is damaged: its SHA-256 does not hold. {REBUILD}")


# ---- writing ----


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    members: Mapping[str, bytes | Path],
    check: Callable[[Path], object] = lambda path: None,
) -> Path:
    """Write a bundle: `manifest`, whose "schema" and "members" are filled in, and members as bytes or files to copy.

    Written as `subbyte.output_file` does, but opened and checked as a reader would and by `check` before it gets its
    name: there is never half a bundle at `path`, and none when `check` raises. Raises BundleError when the manifest or
    a member breaks a rule of docs/bundle.md, WriteError for a full disk.
    """
    path = Path(path)
    payloads, rows = [], {}
    for name, source in sorted(members.items()):
        archive.check_name(name)
        payload, sha256 = _payload(name, source)
        payloads.append(payload)
        rows[name] = {"bytes": payload.size, "sha256": sha256}
    full = {"schema": SCHEMA, **manifest, "members": rows}
    checks.from_dict(full)
    try:
        text = json.dumps(full, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest cannot be written as JSON: {error}") from error
    with output_file(path) as file:
        archive.write_entries(file, [_payload(MANIFEST, text)[0], *payloads])
        file.flush()
        written = Path(file.name)
        open_bundle(written).close()
        check(written)
    return path


def _payload(name: str, source: bytes | Path) -> tuple[Payload, str]:
    def chunks() -> Iterator[bytes]:
        if isinstance(source, (bytes, bytearray, memoryview)):
            yield bytes(source)
            return
        with open(source, "rb") as file:
            yield from iter(lambda: file.read(_CHUNK), b"")

    digest, crc, size = hashlib.sha256(), 0, 0
    for chunk in chunks():
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
    payload = Payload(name, size, crc, chunks, aligned=name in ALIGNED, executable=name in EXECUTABLE)
    return payload, digest.hexdigest()

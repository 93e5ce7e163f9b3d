"""Write and read `.subbyte` bundles; docs/bundle.md is the page of MUSTs that this file obeys.

`open_bundle` checks all of them, hashes included, before it hands out a byte. The hashes find damage, not malice: a
bundle is a program, so load only what you would also run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, SupportsIndex

from subbyte.errors import BundleError, SessionError, UsageError
from subbyte.files.kinds import ONNX, kind_of
from subbyte.files.output import output_file
from subbyte.files.plain import open_plain
from subbyte.runtime import archive
from subbyte.runtime import manifest as checks
from subbyte.runtime.archive import ALIGNMENT, MAX_BUNDLE_BYTES, MAX_MEMBERS, REBUILD, NewMember
from subbyte.runtime.manifest import MAX_MANIFEST_BYTES, SCHEMA, Manifest
from subbyte.runtime.program_form import LIBRARY

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
BENCH = "bench"
ALIGNED = (WEIGHTS, LIBRARY)
EXECUTABLE = (BENCH, LIBRARY)
MAX_HELD_BYTES = 64 << 20  # weights up to this are copied into memory; larger ones stay mapped, and are checked
_CHUNK = 1 << 20


class Bundle:
    """An open bundle whose every hash has been checked; a context manager.

    `manifest` is the typed manifest, `raw` the same as parsed JSON with the keys that this version does not know.
    `nbytes` is the size of the file.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        raw: Mapping[str, Any],
        entries: Mapping[str, archive.Entry],
        descriptor: int,
        state: _State,
        weights: mmap.mmap | None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.raw = raw
        self.entries = entries
        self.nbytes = state.size
        self._descriptor = descriptor  # of the file, which is closed with the bundle; -1 afterwards
        self._state = state  # of the file when its members were hashed
        self._weights = weights
        self._map: mmap.mmap | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members, the manifest too, in file order."""
        return tuple(self.entries)

    def map(self, member: str) -> memoryview:
        """The bytes of a member without a copy, read-only, valid while the bundle or the view lives.

        They are those of the file: what another process writes into it shows, and once it is shorter, reading them ends
        this process (SIGBUS). `weights.bin` and the library start on a page. Raises BundleError for a member that is
        not there.
        """
        entry = self._entry(member)
        if self._map is None:
            try:
                self._map = mmap.mmap(self._descriptor, self.nbytes, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: the file is shorter now
                raise self._error(f"it cannot be mapped: {error}. {REBUILD}") from error
        return memoryview(self._map)[entry.offset : entry.offset + entry.size]

    def read(self, member: str) -> bytes:
        """A copy of the bytes of a member, whose hash is checked again on the copy; raises BundleError."""
        data = b"".join(self._chunks(self._entry(member)))
        if member != MANIFEST and hashlib.sha256(data).hexdigest() != self.manifest.members[member].sha256:
            raise self._changed(member)
        return data

    def weights(self) -> memoryview:
        """The bytes of `weights.bin`, on a page: in memory where `open_bundle` held them, else mapped."""
        return memoryview(self._weights).toreadonly() if self._weights is not None else self.map(WEIGHTS)

    @property
    def holds_weights(self) -> bool:
        """Whether `weights` are in memory, where nothing that happens to the file changes them."""
        return self._weights is not None

    def check_weights(self) -> None:
        """Raise BundleError where the file holds other weights than those that were hashed.

        Costs one fstat while the file is as it was. A change of its times alone proves nothing (a file that another was
        renamed over gets a new ctime, and stays as it is): then the weights are hashed again, once.
        """
        state = _State.of(self._descriptor)
        if state != self._state:
            digest = hashlib.sha256()
            for chunk in self._chunks(self._entry(WEIGHTS)):
                digest.update(chunk)
            if digest.hexdigest() != self.manifest.members[WEIGHTS].sha256:
                raise self._changed(WEIGHTS)
            self._state = state

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Let a BundleError of whoever knows the content, and not the file, name the file."""
        try:
            yield
        except BundleError as error:
            raise self._error(str(error)) from error

    def close(self) -> None:
        """Close and unmap the file; views that are still held stay valid until they are dropped."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        for view in (self._map, self._weights):
            if view is not None:
                with contextlib.suppress(BufferError):  # a view is alive: the map goes with the last of them
                    view.close()
        self._map = self._weights = None

    def __del__(self) -> None:
        self.close()

    def _entry(self, member: str) -> archive.Entry:
        if self._descriptor < 0:
            raise self._error("it is closed; open it again with open_bundle")
        entry = self.entries.get(member)
        if entry is None:
            raise self._error(f"there is no member '{member}'. It has: {', '.join(self.entries)}.")
        return entry

    def _chunks(self, entry: archive.Entry) -> Iterator[bytes]:
        """What the file holds now, up to its end; read, not mapped: it may be cut short at any moment."""
        at, end = entry.offset, entry.offset + entry.size
        while at < end:
            chunk = os.pread(self._descriptor, min(end - at, _CHUNK), at)
            if not chunk:
                raise self._changed(entry.name)
            yield chunk
            at += len(chunk)

    def _changed(self, member: str) -> BundleError:
        return self._error(
            f"member '{member}' changed after it was opened: the file was overwritten in place. Replace a bundle by "
            f"renaming another over it, and load it again. {REBUILD}"
        )

    def _error(self, text: str) -> BundleError:
        return BundleError(f"bundle '{self.path}': {text}")

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # A copy would close the same descriptor a second time, when that may be another file's.
        raise BundleError(f"bundle '{self.path}' cannot be copied or pickled: open it again with open_bundle")

    def __repr__(self) -> str:
        target = self.manifest.target
        return f"Bundle('{self.path}', model '{self.manifest.name}', target '{target.name}' ({target.emitter}))"


class _State(NamedTuple):
    """What the system says of a file; another after it was written to."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @staticmethod
    def of(descriptor: int) -> _State:
        found = os.fstat(descriptor)
        return _State(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def open_bundle(path: str | os.PathLike[str], *, hold_weights: bool = False) -> Bundle:
    """Open a bundle and check every MUST of docs/bundle.md, hashes included; nothing native is loaded.

    With `hold_weights`, weights of at most MAX_HELD_BYTES stay in memory as they were hashed, for `Bundle.weights`.

    Raises UsageError when there is no such file; BundleError, saying what is wrong and what to do, for a file that is
    truncated, re-zipped, damaged, hostile or of another schema; SessionError where descriptors or memory run out.
    """
    path = Path(path)
    try:
        with open_plain(path) as file:
            state = _State.of(file.fileno())
            entries = archive.read_entries(file, state.size)
            raw = _read_manifest(file, entries)
            checked = checks.from_dict(raw)
            _check_members(checked, entries)
            weights: mmap.mmap | None = None
            for name, member in checked.members.items():
                if name == WEIGHTS and hold_weights and 0 < member.bytes <= MAX_HELD_BYTES:
                    weights = _read_weights(file, entries[name], member.sha256)
                else:
                    _check_hash(file, entries[name], member.sha256)
            return Bundle(path, checked, raw, entries, os.dup(file.fileno()), state, weights)
    except BundleError as error:
        if kind_of(path) == ONNX:
            raise BundleError(f"'{path}' is {ONNX}, not yet a bundle: `subbyte compile {path}` makes one") from error
        raise BundleError(f"bundle '{path}': {error}") from error
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no bundle '{path}'. Build one with `subbyte compile model.onnx -o {path}`."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise_if_exhausted(error)
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"bundle '{path}' cannot be read: {reason}; give the path of a .subbyte bundle") from error


def raise_if_exhausted(error: Exception) -> None:
    """Raise SessionError where it is not the bundle's fault: this process has no descriptors or memory left."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        raise SessionError(
            "too many open files (a session holds two): close what is not needed, or raise the limit (`ulimit -n`)"
        ) from error
    if number == errno.ENOMEM:
        raise SessionError("the system gives no more memory: close sessions, or raise its limit") from error


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
    form = checked.target.form
    for name in form.members:
        if name not in named:
            raise BundleError(f"member '{name}' is missing from a bundle that holds {form.holds}. {REBUILD}")
    weights = checked.members[WEIGHTS].bytes if WEIGHTS in named else 0
    if weights != checked.weights_bytes and (WEIGHTS in named or form.is_loaded):
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
    _compare(entry, digest.hexdigest(), expected)


def _read_weights(file: BinaryIO, entry: archive.Entry, expected: str) -> mmap.mmap:
    """A copy of the weights in page-aligned memory, which is hashed."""
    memory = mmap.mmap(-1, entry.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    file.seek(entry.offset)
    with memoryview(memory) as view:
        if file.readinto(view) != entry.size:  # type: ignore[attr-defined]
            raise BundleError(f"the file ends inside member '{entry.name}'. {REBUILD}")
        _compare(entry, hashlib.sha256(view).hexdigest(), expected)
    return memory


def _compare(entry: archive.Entry, found: str, expected: str) -> None:
    if found != expected:
        raise BundleError(f"member '{entry.name}' is damaged: its SHA-256 does not hold. {REBUILD}")


# ---- writing ----


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    members: Mapping[str, bytes | Path],
    check: Callable[[Path], object] = lambda path: None,
) -> Path:
    """Write a bundle: `manifest`, whose "schema" and "members" are filled in, and members as bytes or files to copy.

    Written as `subbyte.files.output` does, but opened and checked as a reader would and by `check` before it gets its
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


def _payload(name: str, source: bytes | Path) -> tuple[NewMember, str]:
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
    payload = NewMember(name, size, crc, chunks, aligned=name in ALIGNED, executable=name in EXECUTABLE)
    return payload, digest.hexdigest()

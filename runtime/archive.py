"""The zip under a bundle, read by our own parser: stored members only, nothing hidden, nothing trusted.

`zipfile` forgives what a loader of native code must not: prepended bytes, members that overlap, local headers that
disagree with the directory, data descriptors. Here each byte of the file belongs to exactly one header or member.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

from subbyte.errors import BundleError

MAX_MEMBERS = 256
MAX_BUNDLE_BYTES = 2 << 30
MAX_NAME_BYTES = 255
ALIGNMENT = 4096  # bytes: of the data of members that are mapped
NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", re.ASCII)

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_STORED = 0
_UTF8_NAME = 0x0800
_ENCRYPTED = 0x0001
_DESCRIPTOR = 0x0008
_ZIP64 = 0x0001
_PADDING = 0xD935  # the extra field in which Android's zipalign keeps its padding
_DOS_DIRECTORY = 0x10
_FILE_TYPE, _REGULAR = 0o170000, 0o100000
_UNIX = 3
_MADE_BY = (_UNIX << 8) | 20
_NEEDS = 20
_DATE = (0 << 9) | (1 << 5) | 1  # 1980-01-01: the same members give the same file

REBUILD = "Copy the original file again, or build it with `subbyte compile`."


class Entry(NamedTuple):
    """A member: the offset of its bytes in the file, and their CRC-32."""

    name: str
    offset: int  # of the data
    size: int
    crc: int


class _Span(NamedTuple):
    """A directory row: a member before its local header has been read."""

    name: str
    header: int
    size: int
    crc: int
    flags: int


def check_name(name: str) -> None:
    """Raise BundleError for a member name that rule 1 of docs/bundle.md forbids."""
    parts = name.split("/")
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES or ".." in name or "." in parts:
        raise BundleError(
            f"member name {name[:80]!r} is not allowed: expected 'file' or 'folder/file' of letters, digits, '_', '.', "
            f"'-', without '..'. Do not unpack this file. {REBUILD}"
        )


def read_entries(file: BinaryIO, size: int) -> dict[str, Entry]:
    """The members of a stored zip of `size` bytes, by name, in file order; raises BundleError for any other file."""
    if size < _END.size:
        raise BundleError(f"{size} bytes are too few for a bundle: the file is truncated or not a bundle. {REBUILD}")
    if size > MAX_BUNDLE_BYTES:
        raise BundleError(f"{size} bytes, at most {MAX_BUNDLE_BYTES} are allowed. Split the model or lower its bits.")
    rows = _directory(file, size)
    entries: dict[str, Entry] = {}
    position = 0
    for row in sorted(rows, key=lambda row: row.header):
        if row.header != position:
            kind = "overlaps the one before it" if row.header < position else "does not follow the one before it"
            raise BundleError(f"member '{row.name}' {kind} (starts at {row.header}, expected {position}). {REBUILD}")
        entry, position = _local(file, row, size)
        entries[row.name] = entry
    directory_at = _end(file, size)[0]
    if position != directory_at:
        raise BundleError(f"{directory_at - position} bytes before the directory belong to no member. {REBUILD}")
    return entries


def _exactly(file: BinaryIO, offset: int, length: int, what: str) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise BundleError(f"the file ends inside {what}: it is truncated. {REBUILD}")
    return data


def _end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Offset and length of the directory and its number of rows."""
    at = size - _END.size
    magic, disk, first, here, rows, length, offset, comment = _END.unpack(_exactly(file, at, _END.size, "the end"))
    if magic != _END_MAGIC or comment:
        raise BundleError(f"no zip directory at the end: the file is truncated, or not a bundle. {REBUILD}")
    if disk or first or here != rows or not 1 <= rows <= MAX_MEMBERS:
        raise BundleError(f"{rows} members, expected 1 to {MAX_MEMBERS} in one zip file without zip64. {REBUILD}")
    if offset + length != at:
        raise BundleError(f"the zip directory does not end where the file does: bytes are missing or added. {REBUILD}")
    return offset, length, rows


def _directory(file: BinaryIO, size: int) -> list[_Span]:
    offset, length, count = _end(file, size)
    data = _exactly(file, offset, length, "the directory")
    rows: list[_Span] = []
    seen: set[str] = set()
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > length:
            raise BundleError(f"the zip directory is shorter than its {count} rows. {REBUILD}")
        fields = _CENTRAL.unpack_from(data, at)
        magic, _made, needs, flags, method, _time, _date, crc, packed, plain = fields[:10]
        name_len, extra_len, comment_len, disk, _internal, external, header = fields[10:]
        if magic != _CENTRAL_MAGIC:
            raise BundleError(f"row {len(rows)} of the zip directory is damaged. {REBUILD}")
        tail = data[at + _CENTRAL.size : at + _CENTRAL.size + name_len + extra_len]
        at += _CENTRAL.size + name_len + extra_len + comment_len
        if at > length:
            raise BundleError(f"the zip directory is shorter than its {count} rows. {REBUILD}")
        name = tail[:name_len].decode("ascii", "backslashreplace")
        check_name(name)
        if name.lower() in seen:
            raise BundleError(f"member '{name}' occurs twice. {REBUILD}")
        seen.add(name.lower())
        _check_row(name, needs, flags, method, packed, plain, disk, external)
        _check_extra(name, tail[name_len:])
        rows.append(_Span(name, header, plain, crc, flags))
    if at != length:
        raise BundleError(f"{length - at} bytes of the zip directory belong to no row. {REBUILD}")
    for name in seen:
        if "/" in name and name.split("/")[0] in seen:
            raise BundleError(f"'{name.split('/')[0]}' is both a member and a folder. {REBUILD}")
    return rows


def _check_row(
    name: str, needs: int, flags: int, method: int, packed: int, plain: int, disk: int, external: int
) -> None:
    if flags & _ENCRYPTED:
        raise BundleError(f"member '{name}' is encrypted, expected plain. {REBUILD}")
    if flags & _DESCRIPTOR:
        raise BundleError(f"member '{name}' was written as a stream, with its size after it: re-zipped? {REBUILD}")
    if flags & ~_UTF8_NAME or needs > _NEEDS or disk:
        raise BundleError(f"member '{name}' uses zip features (flags {flags:#x}) that a bundle must not use. {REBUILD}")
    if method != _STORED or packed != plain:
        raise BundleError(
            f"member '{name}' is compressed (method {method}, {packed} bytes for {plain}), expected stored: the bundle "
            f"was re-zipped. {REBUILD}"
        )
    mode = external >> 16
    if mode & _FILE_TYPE not in (0, _REGULAR) or external & _DOS_DIRECTORY:
        raise BundleError(f"member '{name}' is a link, folder or device (mode {mode:o}), expected a file. {REBUILD}")


def _check_extra(name: str, extra: bytes) -> None:
    at = 0
    while at < len(extra):
        if at + 4 > len(extra):
            raise BundleError(f"the extra field of member '{name}' is damaged. {REBUILD}")
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64:
            raise BundleError(f"member '{name}' uses zip64, which a bundle never needs. {REBUILD}")
        at += 4 + length
    if at != len(extra):
        raise BundleError(f"the extra field of member '{name}' is damaged. {REBUILD}")


def _local(file: BinaryIO, row: _Span, size: int) -> tuple[Entry, int]:
    """The member of a directory row, and where it ends."""
    fields = _LOCAL.unpack(_exactly(file, row.header, _LOCAL.size, f"the header of '{row.name}'"))
    magic, needs, flags, method, _time, _date, crc, packed, plain, name_len, extra_len = fields
    if magic != _LOCAL_MAGIC:
        raise BundleError(f"no member header at byte {row.header}, where '{row.name}' should start. {REBUILD}")
    tail = _exactly(file, row.header + _LOCAL.size, name_len + extra_len, f"the header of '{row.name}'")
    said = (row.name.encode("ascii"), row.flags, _STORED, row.crc, row.size, row.size)
    if (tail[:name_len], flags, method, crc, packed, plain) != said or needs > _NEEDS:
        raise BundleError(f"the local header of member '{row.name}' disagrees with the zip directory. {REBUILD}")
    _check_extra(row.name, tail[name_len:])
    start = row.header + _LOCAL.size + name_len + extra_len
    if start + row.size > size:
        raise BundleError(f"member '{row.name}' says {row.size} bytes, more than the file holds: truncated. {REBUILD}")
    return Entry(row.name, start, row.size, crc), start + row.size


# ---- writing ----


class NewMember(NamedTuple):
    """A member to write: `chunks()` yields its `size` bytes, whose CRC-32 is `crc`."""

    name: str
    size: int
    crc: int
    chunks: Callable[[], Iterable[bytes]]
    aligned: bool = False
    executable: bool = False


def write_entries(file: BinaryIO, payloads: Iterable[NewMember]) -> None:
    """Write a stored zip, aligned payloads at multiples of ALIGNMENT; raises BundleError over the limits."""
    directory: list[bytes] = []
    at = 0
    for payload in payloads:
        check_name(payload.name)
        name = payload.name.encode("ascii")
        extra = _padding(at + _LOCAL.size + len(name)) if payload.aligned else b""
        end = at + _LOCAL.size + len(name) + len(extra) + payload.size
        if end > MAX_BUNDLE_BYTES:
            raise BundleError(f"member '{payload.name}' takes the bundle over {MAX_BUNDLE_BYTES} bytes")
        shared = (_NEEDS, 0, _STORED, 0, _DATE, payload.crc, payload.size, payload.size, len(name))
        file.write(_LOCAL.pack(_LOCAL_MAGIC, *shared, len(extra)) + name + extra)
        for chunk in payload.chunks():
            file.write(chunk)
        if file.tell() != end:
            raise BundleError(f"member '{payload.name}' changed while it was written; try again")
        mode = (_REGULAR | (0o755 if payload.executable else 0o644)) << 16
        directory.append(_CENTRAL.pack(_CENTRAL_MAGIC, _MADE_BY, *shared, 0, 0, 0, 0, mode, at) + name)
        at = end
    if not 1 <= len(directory) <= MAX_MEMBERS:
        raise BundleError(f"{len(directory)} members, expected 1 to {MAX_MEMBERS}")
    rows = b"".join(directory)
    file.write(rows + _END.pack(_END_MAGIC, 0, 0, len(directory), len(directory), len(rows), at, 0))


def _padding(position: int) -> bytes:
    """An extra field after which data that would follow `position` starts at a multiple of ALIGNMENT."""
    if position % ALIGNMENT == 0:
        return b""
    head = struct.calcsize("<HHH")
    length = head + -(position + head) % ALIGNMENT
    return struct.pack("<HHH", _PADDING, length - 4, ALIGNMENT) + bytes(length - head)

"""Which glibc a shared library needs: a library linked on a new Linux often does not load on an older one.

A linker binds each symbol to its newest version, so that `pthread_create` linked against glibc 2.34 needs 2.34,
although every glibc has one. The version table of the ELF file says so: sections .gnu.version and .gnu.version_r, in
the Linux Standard Base 5.0, "Symbol Versioning".
"""

from __future__ import annotations

import re
import struct

from subbyte.errors import ToolchainError

Version = tuple[int, int]

_DYNAMIC_SYMBOLS, _VERSIONS_NEEDED, _VERSION_OF_SYMBOL = 11, 0x6FFFFFFE, 0x6FFFFFFF
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr: name, type, flags, address, offset, size, link, ...
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, ...
_NEED = struct.Struct("<HHIII")  # Elf64_Verneed: version, count, file, first of its versions, next
_NEEDED = struct.Struct("<IHHII")  # Elf64_Vernaux: hash, flags, index, name, next


def needed_glibc(library: bytes) -> dict[str, Version]:
    """The glibc version that each symbol of a 64-bit little-endian ELF library is bound to; empty without glibc.

    A mark that no symbol carries is listed by its own name. Raises ToolchainError for anything but such a library.
    """
    try:
        sections = _sections(library)
        named = _version_names(library, sections)
        of_symbol = sections.get(_VERSION_OF_SYMBOL)
        symbols = sections.get(_DYNAMIC_SYMBOLS)
        needed: dict[str, Version] = {}
        if symbols is not None and of_symbol is not None:
            for i in range(symbols[1] // _SYMBOL.size):
                (index,) = struct.unpack_from("<H", library, of_symbol[0] + 2 * i)
                if index in named:
                    name = _SYMBOL.unpack_from(library, symbols[0] + i * _SYMBOL.size)[0]
                    needed[_text(library, symbols[2], name)] = _version(named[index])
    except (struct.error, IndexError, ValueError) as error:
        raise ToolchainError(f"the linked library's version table cannot be read: {error}") from error
    bound = set(needed.values())
    return needed | {name: _version(name) for name in named.values() if _version(name) not in bound}


def version_text(version: Version) -> str:
    """2, 17 -> '2.17'."""
    return f"{version[0]}.{version[1]}"


def _sections(library: bytes) -> dict[int, tuple[int, int, int, int]]:
    """Offset, bytes, offset of the string table, and entries of each section, by its type."""
    if library[:6] != b"\x7fELF\x02\x01":
        raise ToolchainError("the linker did not make a 64-bit little-endian ELF library")
    (start,) = struct.unpack_from("<Q", library, 40)
    size, count = struct.unpack_from("<HH", library, 58)
    rows = [_SECTION.unpack_from(library, start + i * size) for i in range(count)]
    return {row[1]: (row[4], row[5], rows[row[6]][4], row[7]) for row in rows}


def _version_names(library: bytes, sections: dict[int, tuple[int, int, int, int]]) -> dict[int, str]:
    """Names of glibc's versions by the index that symbols carry."""
    names: dict[int, str] = {}
    if _VERSIONS_NEEDED not in sections:
        return names
    at, _, strings, files = sections[_VERSIONS_NEEDED]
    for _ in range(files):
        _, count, _, first, following = _NEED.unpack_from(library, at)
        place = at + first
        for _ in range(count):
            _, _, index, name, next_one = _NEEDED.unpack_from(library, place)
            text = _text(library, strings, name)
            if text.startswith("GLIBC_"):
                names[index] = text
            place += next_one
        at += following
    return names


def _text(library: bytes, strings: int, offset: int) -> str:
    start = strings + offset
    return library[start : library.index(b"\0", start)].decode("ascii", "replace")


def _version(name: str) -> Version:
    """'GLIBC_2.2.5' -> (2, 2); marks without a number, such as GLIBC_ABI_DT_RELR, began with 2.36: at least that."""
    found = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", name)
    return (int(found[1]), int(found[2])) if found else (2, 36)

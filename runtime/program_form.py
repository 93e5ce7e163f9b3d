"""In what form a bundle holds its program: `target.emitter` of the manifest names one of FORMS.

To add one: a row of FORMS. An emitter (tvm_kernels/emit/) refers to the row of what it writes; several may to one.
"""

from __future__ import annotations

from typing import NamedTuple

LIBRARY = "library.so"


class ProgramForm(NamedTuple):
    """What the runtime does with a bundle of this form."""

    word: str  # in the manifest
    holds: str  # what the bundle has, in words
    members: tuple[str, ...]  # that it cannot lack
    build: str | None  # what the user does to run it elsewhere; None: the runtime loads LIBRARY

    @property
    def is_loaded(self) -> bool:
        """Whether the runtime loads and runs it, on a machine of the bundle's target."""
        return self.build is None


FORMS = {
    form.word: form
    for form in (
        ProgramForm("library", "a shared library", members=(LIBRARY,), build=None),
        ProgramForm(
            word="source",
            holds="C sources",
            members=(),
            build="unpack it (it is a zip) and run `make` in source/, or add source/*.c to your firmware, compiled "
            "with -ffp-contract=off",
        ),
    )
}

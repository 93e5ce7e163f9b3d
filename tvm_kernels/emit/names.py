"""C names of a model: every symbol and macro carries its name, so that several models link into one program."""

from __future__ import annotations

import re
from dataclasses import dataclass

from subbyte.errors import UsageError

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LONGEST = 64  # compilers tell longer names apart, not every linker does


def check_name(name: str) -> None:
    """Refuse a name, given by the user, that C cannot spell; raises UsageError."""
    if not IDENTIFIER.fullmatch(name) or len(name) > LONGEST:
        raise UsageError(
            f"the name '{name}' is not a C identifier, as the model's C symbols need; expected letters, digits and "
            f"underscores, not starting with a digit, at most {LONGEST} characters"
        )


@dataclass(frozen=True)
class Names:
    """C names of one model; `model`: its name with what C cannot spell replaced by underscores."""

    model: str

    @property
    def get_model(self) -> str:
        """The function that returns the model's table."""
        return f"subbyte_get_{self.model}_model"

    def symbol(self, what: str) -> str:
        """A function or an array."""
        return f"subbyte_{self.model}_{what}"

    def macro(self, what: str) -> str:
        """A macro."""
        return f"SUBBYTE_{self.model.upper()}_{what}"

    def in_example(self, text: str) -> str:
        """C text written for a model called `example`, for this one."""
        return text.replace("_example_", f"_{self.model}_").replace("_EXAMPLE_", f"_{self.model.upper()}_")


def names_of(model: str) -> Names:
    """C names of a model of any name."""
    return Names(re.sub(r"\W", "_", model, flags=re.ASCII)[:LONGEST] or "model")

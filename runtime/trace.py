"""Write what every operator makes of the golden inputs into files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.files.output import write_file
from subbyte.runtime.golden import golden_inputs
from subbyte.runtime.session import Session

Array = npt.NDArray[Any]


def write_trace(session: Session, folder: Path) -> None:
    """Run the golden inputs and write what every operator makes into `folder`, as soon as it has run.

    Result 1 of operator 12 is `12-1.npy`, as `Session.trace` has it; `12` alone, empty, says that operator 12 ran. Of a
    model with state it is the first of the golden runs. Raises BundleError when the bundle has no golden run.
    """
    operators = session.manifest.operators

    def write(index: int, results: dict[str, Array]) -> None:
        for number, output in enumerate(operators[index].outputs):
            if output.tensor in results:
                held = io.BytesIO()
                np.save(held, results[output.tensor], allow_pickle=False)
                write_file(folder / f"{index}-{number}.npy", held.getvalue())
        write_file(folder / str(index), b"")

    session.reset()
    session.watch(golden_inputs(session.bundle), write, check_finite=False)

"""docs/bundle.md: its C program, linked as the page says, gives what a session of Python gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from pages import commands, shell, text_of

import subbyte
from subbyte.models import untrained

PAGE = "docs/bundle.md"


def test_a_c_program_with_a_session_gives_what_python_gives(tmp_path: Path) -> None:
    """Outputs and the first byte of the state: three steps, and one after a reset."""
    model, _ = untrained("gru", "ternary")
    subbyte.export(model.step, tmp_path / "gru.onnx", example=torch.zeros(1, 8))
    (program,) = re.findall(r"```c\n(.*?)```", text_of(PAGE), re.DOTALL)
    (tmp_path / "main.c").write_text(program, encoding="utf-8")
    lines = shell(commands(PAGE, "subbyte compile gru.onnx --archive"), tmp_path).splitlines()[-4:]
    got = np.array([[float(word) for word in line.split()] for line in lines])
    expected = []
    with subbyte.load(tmp_path / "gru.subbyte", threads=1) as session:
        for step in range(4):
            if step == 3:
                session.reset()
            x = ((np.arange(8) + step % 3) % 3 / 2).astype(np.float32)[np.newaxis]
            y = session.run(x)
            first = np.frombuffer(next(iter(session.state.values())).tobytes(), np.uint8)[0]
            expected.append([*np.ravel(y).astype(float), float(first)])
    np.testing.assert_array_equal(got.astype(np.float32), np.array(expected, np.float32))
    assert len({tuple(row) for row in expected}) == 3  # the reset begins anew

"""docs/add-a-format.md is a program: its code blocks in order, in a process of their own (formats stay registered)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "add-a-format.md"
CHECK = """
import numpy as np
import subbyte
from subbyte.export import inspect, run_onnx

layers = inspect("quinary.onnx").layers
assert [layer.weight_format for layer in layers] == ["int8", "quinary", "int8"], layers
x = images[:1].numpy()
with torch.no_grad():
    expected = model(images[:1]).numpy()
assert np.array_equal(run_onnx("quinary.onnx", x)["logits"], expected)
with subbyte.load("quinary.subbyte") as session:
    result = session.run(x)
result = next(iter(result.values())) if isinstance(result, dict) else result
assert np.array_equal(result, expected), (result, expected)
print("all is well")
"""


def test_the_page_works_as_it_stands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    script = tmp_path / "page.py"
    script.write_text("\n".join([*blocks, CHECK]))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("all is well")

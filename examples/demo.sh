#!/bin/sh
# The whole pipeline on real digits that ship with scikit-learn: train, export, inspect, compile, run, check, benchmark.
# Usage: sh examples/demo.sh FOLDER
set -eu
out=${1:-runs/demo}
mkdir -p "$out"

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

step subbyte train resnet8 --data digits --scheme float --epochs 10 --out "$out/float" --overwrite --quiet
step subbyte train resnet8 --data digits --scheme ternary --epochs 10 --init "$out/float" --out "$out/ternary" \
  --overwrite --quiet
step subbyte export "$out/float" -o "$out/float.onnx"
step subbyte export "$out/ternary" -o "$out/ternary.onnx"
step subbyte inspect "$out/ternary.onnx"
step subbyte compile "$out/ternary.onnx" --target host -o "$out/ternary.subbyte"
python -c "
import numpy as np
from subbyte.models.data import load_data
image, label = load_data('digits').test[0]
np.save('$out/digit.npy', np.asarray(image)[None])
print(f'saved $out/digit.npy, a handwritten {label}')"
step subbyte run "$out/ternary.subbyte" --input "$out/digit.npy"
step subbyte check "$out/ternary" "$out/ternary.onnx" "$out/ternary.subbyte" --data digits
step subbyte bench "$out/ternary.subbyte" --baseline onnxruntime --float-model "$out/float.onnx" --data digits \
  --seconds 1 --json "$out/bench.json"

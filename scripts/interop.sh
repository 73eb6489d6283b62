#!/bin/sh
# Trains a small model with bin/anomaly and holds it against PyTorch, ONNX's checker and ONNX
# Runtime for Python. BENCH_PYTHON: as in bench.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/bench-venv.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
bin/anomaly train testdata/tiles/train/good --level 1 --image-size 64 --out "$tmp/model.zip"
"$BENCH_PYTHON" bench/interop.py --anomaly bin/anomaly --model "$tmp/model.zip" testdata/tiles/test/*/

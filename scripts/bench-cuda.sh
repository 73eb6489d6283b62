#!/bin/sh
# Measures on a CUDA device what the benchmark measures on the processor: the training step,
# beside PyTorch's on the same device. Nobody has run this yet: no device was at hand.
#
#   make runtime RUNTIME=cuda && scripts/bench-cuda.sh [-rounds 5 -sides 128,256 …]
#
# ANOMALY_ONNXRUNTIME names ONNX Runtime's CUDA build, where it is not the one that
# "make runtime RUNTIME=cuda" brought. Arguments go to the benchmark program.
set -eu
cd "$(dirname "$0")/.."
if ! command -v nvidia-smi >/dev/null 2>&1 || ! nvidia-smi -L | grep -q GPU; then
	echo "bench-cuda: nvidia-smi finds no device" >&2
	exit 1
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if [ -z "${ANOMALY_ONNXRUNTIME:-}" ]; then
	ANOMALY_ONNXRUNTIME=$(scripts/fetch-onnxruntime.sh cuda --path)
	export ANOMALY_ONNXRUNTIME
fi
# The program fails where CUDA was asked for and does not compute.
export ANOMALY_BENCH_PROVIDER=cuda
. scripts/bench-venv.sh
"$BENCH_PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "bench-cuda: PyTorch finds no device")'
exec "${GO:-go}" run ./bench -only step "$@"

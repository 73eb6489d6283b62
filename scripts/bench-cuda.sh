#!/bin/sh
# Measures the training step on a CUDA device, beside PyTorch's on the same device. It is
# untested: it has not run on a device yet.
#
#   make runtime RUNTIME=cuda && scripts/bench-cuda.sh [-rounds 5 -sides 128,256 …]
#
# ANOMALY_ONNXRUNTIME names another CUDA build of ONNX Runtime than the one that
# "make runtime RUNTIME=cuda" fetched. Arguments are passed to the benchmark program.
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
# With this the program fails if CUDA does not work, instead of falling back to the CPU.
export ANOMALY_BENCH_PROVIDER=cuda
. scripts/bench-venv.sh
"$BENCH_PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "bench-cuda: PyTorch finds no device")'
exec "${GO:-go}" run ./bench -only step "$@"

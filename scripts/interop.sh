#!/bin/sh
# Compares three kinds of models in the runtimes that their files are made for, and prints a
# table. Arguments are passed to bench/interop/run.py. BENCH_PYTHON is that of bench.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/bench-venv.sh
exec "$BENCH_PYTHON" bench/interop/run.py --anomaly bin/anomaly "$@"

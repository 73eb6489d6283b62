#!/bin/sh
# Holds models of three kinds against the runtimes that their files are made for, and prints a
# table: see bench/interop/run.py, which takes the arguments. BENCH_PYTHON: as in bench.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/bench-venv.sh
exec "$BENCH_PYTHON" bench/interop/run.py --anomaly bin/anomaly "$@"

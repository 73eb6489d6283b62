#!/bin/sh
# Runs the benchmark program beside its Python peers. BENCH_PYTHON names a Python that has
# the packages of bench/requirements.txt; without it one is made in .cache/venv-bench.
# Arguments go to the program.
set -eu
cd "$(dirname "$0")/.."
. scripts/bench-venv.sh
exec "${GO:-go}" run ./bench "$@"

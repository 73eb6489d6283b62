#!/bin/sh
# Runs the benchmark program, which compares with Python programs. BENCH_PYTHON names a
# Python with the packages of bench/requirements.txt; by default one is made in
# .cache/venv-bench. Arguments are passed to the program.
set -eu
cd "$(dirname "$0")/.."
. scripts/bench-venv.sh
exec "${GO:-go}" run ./bench "$@"

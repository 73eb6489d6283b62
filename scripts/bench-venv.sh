# Sourced, at the root of the repository: exports BENCH_PYTHON, a Python with the packages
# of bench/requirements.txt, in .cache/venv-bench where the caller has named none.
if [ -z "${BENCH_PYTHON:-}" ]; then
	BENCH_PYTHON=$(pwd)/.cache/venv-bench/bin/python
	if ! cmp -s bench/requirements.txt .cache/venv-bench/ready; then
		command -v python3 >/dev/null 2>&1 || {
			echo "python3 is not installed, and the peers to measure beside are Python's: install it, or name one with BENCH_PYTHON" >&2
			exit 1
		}
		echo "bringing PyTorch and Flask with pip into .cache/venv-bench (some minutes, once)" >&2
		rm -rf .cache/venv-bench
		mkdir -p .cache
		python3 -m venv .cache/venv-bench
		"$BENCH_PYTHON" -m pip install --quiet -r bench/requirements.txt
		cp bench/requirements.txt .cache/venv-bench/ready
	fi
fi
export BENCH_PYTHON

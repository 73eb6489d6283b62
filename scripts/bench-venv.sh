# To be sourced at the root of the repository. Exports BENCH_PYTHON, a Python with the
# packages of bench/requirements.txt: the caller's, or one that it makes in
# .cache/venv-bench.
if [ -z "${BENCH_PYTHON:-}" ]; then
	BENCH_PYTHON=$(pwd)/.cache/venv-bench/bin/python
	if ! cmp -s bench/requirements.txt .cache/venv-bench/ready; then
		command -v python3 >/dev/null 2>&1 || {
			echo "python3 is not installed, but the benchmark compares with Python programs: install it, or set BENCH_PYTHON" >&2
			exit 1
		}
		echo "installing PyTorch and Flask with pip into .cache/venv-bench (some minutes, once)" >&2
		rm -rf .cache/venv-bench
		mkdir -p .cache
		python3 -m venv .cache/venv-bench
		"$BENCH_PYTHON" -m pip install --quiet -r bench/requirements.txt
		cp bench/requirements.txt .cache/venv-bench/ready
	fi
fi
export BENCH_PYTHON

#!/bin/sh
# Makes .cache/venv from testdata/requirements.txt for the tests that run Python. Prints
# nothing if it is up to date. Without Python, or if its packages cannot be installed, it
# prints so and succeeds, and those tests skip.
set -eu
cd "$(dirname "$0")/.."
venv=.cache/venv
want=testdata/requirements.txt

if [ -e "$venv/ready" ] && cmp -s "$want" "$venv/ready" && "$venv/bin/python" -c '' 2>/dev/null; then
	exit 0
fi
if ! command -v python3 >/dev/null 2>&1; then
	echo "python3 is not installed: the tests that run Python will skip"
	exit 0
fi
rm -rf "$venv"
mkdir -p .cache
if python3 -m venv "$venv" >.cache/venv.log 2>&1 &&
	"$venv/bin/python" -m pip install --quiet --only-binary=:all: -r "$want" >>.cache/venv.log 2>&1; then
	cp "$want" "$venv/ready"
	echo "Python packages for the tests installed with pip into $venv"
else
	echo "Python packages for the tests cannot be installed ($(grep . .cache/venv.log | tail -n 1)): the tests that run Python will skip"
fi

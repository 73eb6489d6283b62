#!/bin/sh
# Fetches ONNX Runtime's shared library into the project's cache, from the package that
# internal/ort/library.tsv pins, and checks its SHA-256 against that table.
#
#   scripts/fetch-onnxruntime.sh [cpu|cuda] [--path]
#
# Does nothing if the cache holds the right file already. With --path it prints the folder
# of the library to standard output, and messages to standard error.
#
#   ANOMALY_CACHE        the cache folder, instead of the user's
#   ANOMALY_ONNXRUNTIME  an installed library: then nothing is fetched
set -eu

fail() {
	echo "fetch-onnxruntime: $1" >&2
	exit 1
}

kind=cpu
print_path=
for arg in "$@"; do
	case $arg in
	cpu | cuda) kind=$arg ;;
	--path) print_path=1 ;;
	*) fail "unknown argument $arg; usage: fetch-onnxruntime.sh [cpu|cuda] [--path]" ;;
	esac
done

if [ -z "$print_path" ] && [ "$kind" = cpu ] && [ -e "${ANOMALY_ONNXRUNTIME:-}" ]; then
	exit 0
fi

table=$(cd "$(dirname "$0")/.." && pwd)/internal/ort/library.tsv
[ -r "$table" ] || fail "cannot read the table of pinned libraries, $table"

case $(uname -s) in
Linux) os=linux ;;
Darwin) os=darwin ;;
*) os=$(uname -s) ;;
esac
case $(uname -m) in
x86_64 | amd64) arch=amd64 ;;
aarch64 | arm64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac

# The rows of this platform and kind, in the table's order.
rows=$(awk -F '\t' -v os="$os" -v arch="$arch" -v kind="$kind" '
	$1 == os && $2 == arch && ($4 ~ /-gpu$/) == (kind == "cuda")' "$table")
[ -n "$rows" ] || fail "no $kind build of ONNX Runtime is pinned for $os/$arch; build one, and set ANOMALY_ONNXRUNTIME to it"
version=$(printf '%s\n' "$rows" | awk -F '\t' 'NR == 1 { print $5 }')

if [ -n "${ANOMALY_CACHE:-}" ]; then
	cache=$ANOMALY_CACHE
elif [ "$os" = darwin ]; then
	cache=${HOME:?}/Library/Caches/deepmed-anomaly
else
	cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/deepmed-anomaly
fi
dir=$cache/onnxruntime/$version
[ "$kind" = cpu ] || dir=$dir/$kind

hash_of() {
	if command -v sha256sum >/dev/null 2>&1; then
		sha256sum <"$1" | cut -d ' ' -f 1
	else
		shasum -a 256 <"$1" | cut -d ' ' -f 1
	fi
}

# complete succeeds if each file of the platform exists with a hash in the table.
complete() {
	for name in $(printf '%s\n' "$rows" | cut -f 7 | sort -u); do
		[ -f "$dir/$name" ] || return 1
		sum=$(hash_of "$dir/$name")
		printf '%s\n' "$rows" | awk -F '\t' -v n="$name" -v s="$sum" '$7 == n && $8 == s { ok = 1 } END { exit !ok }' || return 1
	done
}

if complete; then
	[ -z "$print_path" ] || printf '%s\n' "$dir"
	exit 0
fi

tmp=$(mktemp -d)
part=
trap 'rm -rf "$tmp"; [ -z "$part" ] || rm -f "$part"' EXIT
trap 'exit 1' HUP INT TERM

# npm_fetch PACKAGE: unpacks the package under $tmp/npm.
npm_fetch() {
	mkdir -p "$tmp/npm" &&
		(cd "$tmp/npm" && npm pack --silent "$1@$version") >"$tmp/log" 2>&1 &&
		tar -xzf "$tmp"/npm/*.tgz -C "$tmp/npm" >>"$tmp/log" 2>&1
}

# pip_fetch PACKAGE: unpacks the wheel under $tmp/pip/package. The wheels of a platform hold
# the same library for every version of Python, so the version here does not matter.
pip_fetch() {
	case $os/$arch in
	linux/amd64) platform=manylinux_2_28_x86_64 ;;
	linux/arm64) platform=manylinux_2_28_aarch64 ;;
	*) platform=macosx_14_0_arm64 ;;
	esac
	mkdir -p "$tmp/pip" &&
		python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
			--platform "$platform" --python-version 3.12 --dest "$tmp/pip" "$1==$version" >"$tmp/log" 2>&1 &&
		python3 -m zipfile -e "$tmp"/pip/*.whl "$tmp/pip/package" >>"$tmp/log" 2>&1
}

why=
for client in npm pip; do
	mine=$(printf '%s\n' "$rows" | awk -F '\t' -v c="$client" '$3 == c')
	[ -n "$mine" ] || continue
	case $client in
	npm) command -v npm >/dev/null 2>&1 || { why="${why}npm is not installed; "; continue; } ;;
	pip) python3 -m pip --version >/dev/null 2>&1 || { why="${why}python3 with pip is not installed; "; continue; } ;;
	esac
	package=$(printf '%s\n' "$mine" | awk -F '\t' 'NR == 1 { print $4 }')
	rm -rf "${tmp:?}/$client"
	if ! "${client}_fetch" "$package"; then
		why="${why}$client could not fetch $package $version ($(grep . "$tmp/log" 2>/dev/null | tail -n 1)); "
		continue
	fi
	mkdir -p "$dir"
	printf '%s\n' "$mine" | cut -f 6-8 >"$tmp/files"
	while IFS='	' read -r file name want; do
		[ -f "$tmp/$client/package/$file" ] || fail "$package $version from $client holds no $file"
		got=$(hash_of "$tmp/$client/package/$file")
		[ "$got" = "$want" ] || fail "$file of $package $version from $client has the SHA-256 $got, and $want is pinned: it was not installed"
		# Copied into the same folder and renamed, so that no process loads a partial file.
		part=$dir/.$name.$$
		cp "$tmp/$client/package/$file" "$part"
		chmod 755 "$part"
		mv -f "$part" "$dir/$name"
		part=
	done <"$tmp/files"
	said="ONNX Runtime $version ($kind, $os/$arch) fetched with $client from $package, SHA-256 checked, into $dir"
	if [ -n "$print_path" ]; then
		echo "$said" >&2
		printf '%s\n' "$dir"
	else
		echo "$said"
	fi
	exit 0
done
fail "ONNX Runtime $version cannot be fetched: ${why}install npm or pip, or set ANOMALY_ONNXRUNTIME to a library"

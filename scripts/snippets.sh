#!/bin/sh
# Makes .cache/snippets for the tests that run the programs in a model's README.md:
#
#   node_modules  the packages of testdata/package.json
#   include       ONNX Runtime's C++ headers
#
# Prints nothing if both are up to date. If one cannot be fetched it prints so and succeeds,
# and the test of that language skips.
set -eu
cd "$(dirname "$0")/.."
cache=.cache/snippets
want=testdata/package.json

# npm has the headers only in a package for Unity, in its iOS framework. They are the plain
# headers of ONNX Runtime 1.26, whose interface every later library has too.
package=com.github.asus4.onnxruntime
version=0.4.8
sha256=007a59a954d2161ffb1b3977a649c7945ee37bf30ad493891d4252c02e9536a4
headers='package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers'

mkdir -p "$cache"
log=$cache/log

hash_of() {
	if command -v sha256sum >/dev/null 2>&1; then
		sha256sum <"$1" | cut -d ' ' -f 1
	else
		shasum -a 256 <"$1" | cut -d ' ' -f 1
	fi
}

fetch_packages() {
	rm -rf "$cache/node_modules" "$cache/package.json"
	cp "$want" "$cache/package.json"
	(cd "$cache" && npm install --silent --ignore-scripts --no-package-lock --no-audit --no-fund) >"$log" 2>&1
}

fetch_headers() {
	rm -rf "$cache/include" "$cache/unpacked"
	mkdir -p "$cache/unpacked"
	(cd "$cache/unpacked" && npm pack --silent "$package@$version") >"$log" 2>&1 || return 1
	set -- "$cache"/unpacked/*.tgz
	sum=$(hash_of "$1")
	if [ "$sum" != "$sha256" ]; then
		echo "$package $version has the SHA-256 $sum, and $sha256 is pinned" >"$log"
		return 1
	fi
	tar -xzf "$1" -C "$cache/unpacked" "$headers" >"$log" 2>&1 && mv "$cache/unpacked/$headers" "$cache/include"
}

# step FOLDER MARK COMMAND LANGUAGE: runs the command, unless the folder was made with the
# same mark before.
step() {
	if [ -d "$cache/$1" ] && [ "$(cat "$cache/$1.ready" 2>/dev/null)" = "$2" ]; then
		return 0
	fi
	rm -f "$cache/$1.ready"
	if ! command -v npm >/dev/null 2>&1; then
		echo "npm is not installed: the tests that run the $4 of a model's README will skip"
	elif "$3"; then
		printf '%s\n' "$2" >"$cache/$1.ready"
		echo "packages for the $4 of a model's README fetched with npm into $cache/$1"
	else
		rm -rf "${cache:?}/$1"
		echo "packages for the $4 of a model's README cannot be fetched ($(grep . "$log" | tail -n 1)): its test will skip"
	fi
	rm -rf "$cache/unpacked"
}

step node_modules "$(cat "$want")" fetch_packages JavaScript
step include "$package $version $sha256" fetch_headers C++

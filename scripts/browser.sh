#!/bin/sh
# Tests the web page in Chromium: web/browsertest. Chromium is installed from Debian's
# packages if there is none and this is root. Writes the pictures of docs/page.md, unless
# PAGE_PICTURES names another folder.
set -eu
cd "$(dirname "$0")/.."

found() {
	for name in chromium chromium-browser google-chrome google-chrome-stable headless-shell; do
		command -v "$name" >/dev/null 2>&1 && return 0
	done
	return 1
}

if ! found; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
		echo 'browser: there is no Chromium: install it (Debian: apt-get install chromium)' >&2
		exit 1
	fi
	apt-get update -q
	apt-get install -y --no-install-recommends chromium
fi
(cd web && npm ci --no-audit --no-fund --silent)
export PAGE_PICTURES="${PAGE_PICTURES:-$PWD/docs/page}"
exec "${GO:-go}" test -tags browser ./web/browsertest -count=1 -timeout 30m "$@"

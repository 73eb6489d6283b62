package dataset

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable returns a file's name for messages: quoted if it has control characters,
// invisible ones or invalid UTF-8, which could forge lines of a log or change a terminal.
func Printable(name string) string {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// shortened returns a file's name for messages, at most about 200 bytes of it. Names in a
// zip may have 64 KiB.
func shortened(name string) string {
	const limit = 200
	if len(name) <= limit {
		return Printable(name)
	}
	return Printable(strings.ToValidUTF8(name[:limit], "")) + "…"
}

package hostile

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// Outcome is the required result of a training on a data set.
type Outcome int

// The outcomes of a training.
const (
	// NotZip means an error: the file is not a zip.
	NotZip Outcome = iota
	// Oversized means an error: the data set is too large.
	Oversized
	// NoImages means an error: there is no usable image.
	NoImages
	// Trains means success: the data set also has a valid image; malicious entries are
	// skipped.
	Trains
)

// Dataset is a malicious zip of images.
type Dataset struct {
	Name string // describes the attack
	Want Outcome
	Data []byte
}

// Datasets returns malicious zips for a training. Some of them try to create the file
// canary. The outcomes hold for limits of 100 files and 64 MiB unpacked, with the
// service's default for all other limits.
func Datasets(canary string) []Dataset {
	var out []Dataset
	add := func(name string, want Outcome, data []byte) { out = append(out, Dataset{name, want, data}) }
	picture := Picture()
	good := Entry{Name: "good.png", Data: picture}
	whole := Pack(good)
	evil := []byte("written by a data set")
	climbing := strings.Repeat("../", 16) + strings.TrimPrefix(canary, "/")

	// Bombs.
	add("an image that declares 4 GB", Oversized, Pack(good, Entry{Name: "a.png", Data: evil, Method: zip.Deflate, Size: 4<<30 - 2}))
	add("an image that declares 2^62 bytes", Oversized, Pack(good, Entry{Name: "a.png", Data: evil, Size: 1 << 62, PackedSize: 1 << 62}))
	add("images that declare 2^64 bytes together", Oversized, Pack(Entry{Name: "a.png", Data: evil, Size: 1 << 63}, Entry{Name: "b.png", Data: evil, Size: 1 << 63}))
	add("an image of 65 MiB of zeros", Oversized, Pack(good, Entry{Name: "a.bmp", Data: make([]byte, 65<<20), Method: zip.Deflate}))
	add("an image of 40 MiB of zeros, above an image's limit", Trains, Pack(good, Entry{Name: "a.bmp", Data: make([]byte, 40<<20), Method: zip.Deflate}))
	add("an image that unpacks to more than its size", Trains, Pack(good, Entry{Name: "a.png", Data: make([]byte, 60<<20), Method: zip.Deflate, Size: 10}))
	many := make([]Entry, 101)
	for i := range many {
		many[i] = Entry{Name: fmt.Sprint(i, ".png"), Data: picture}
	}
	add("101 files", Oversized, Pack(many...))
	for i := range many {
		many[i].Name = fmt.Sprint(i, "/")
		many[i].Data = nil
	}
	add("101 folders", Oversized, Pack(many...))
	add("a zip in a zip", NoImages, Pack(Entry{Name: "inner.zip", Data: whole}))
	add("a zip named as an image", NoImages, Pack(Entry{Name: "inner.png", Data: whole}))
	add("data.yaml of 900,000 brackets", Trains, Pack(good, Entry{Name: "data.yaml", Data: bytes.Repeat([]byte("["), 900_000)}))
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	add("data.yaml with a billion laughs", Trains, Pack(good, Entry{Name: "data.yaml", Data: []byte(laughs + "names: *j\n")}))
	add("data.yaml with a Python constructor", Trains, Pack(good, Entry{Name: "data.yaml", Data: []byte("names: !!python/object/apply:os.system ['touch " + canary + "']\n")}))

	// Names.
	add("names that traverse to a parent folder", Trains, Pack(good, Entry{Name: climbing + ".png", Data: evil}, Entry{Name: "/" + climbing + ".png", Data: evil},
		Entry{Name: strings.ReplaceAll(climbing, "/", `\`) + ".png", Data: evil}, Entry{Name: canary + ".png", Data: picture}))
	add("links to secrets", NoImages, Pack(Entry{Name: "a.png", Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink | 0o777}))
	add("a link to the canary and a file below it", Trains, Pack(good, Entry{Name: "x.png", Data: []byte(canary), Mode: fs.ModeSymlink | 0o777},
		Entry{Name: "x.png/y.png", Data: evil}))
	add("a device", Trains, Pack(good, Entry{Name: "a.png", Data: evil, Mode: fs.ModeDevice | 0o666}))
	add("names with a NUL byte", Trains, Pack(good, Entry{Name: "a\x00.png", Data: evil}))
	add("names with line ends and markup", Trains, Pack(good, Entry{Name: "a\n\r\x1b[2J<script>.png", Data: evil}))
	add("a name that is not UTF-8", Trains, Pack(good, Entry{Name: "\xff\xfe\xc0.png", Data: evil}))
	add("a name of 60,000 bytes", Trains, Pack(good, Entry{Name: strings.Repeat("n", 60_000) + ".png", Data: evil}))
	add("a name used a hundred times", Trains, Pack(repeat(Entry{Name: "a.png", Data: picture}, 100)...))
	add("only hidden files", NoImages, Pack(Entry{Name: ".a.png", Data: picture}, Entry{Name: "__MACOSX/a.png", Data: picture}))
	add("names that are only an extension", NoImages, Pack(Entry{Name: ".png", Data: picture}))

	// Compression methods, and wrong sizes.
	add("an encrypted image", NoImages, Pack(Entry{Name: "a.png", Data: picture, Flags: 1}))
	add("compression method AES", NoImages, Pack(Entry{Name: "a.png", Data: picture, Method: 99}))
	add("a wrong checksum", NoImages, Pack(Entry{Name: "a.png", Data: picture, CRC32: 0xdeadbeef}))
	add("an image with an invalid Deflate stream", NoImages, patch(Pack(Entry{Name: "a.png", Data: picture}), directoryHeader, 0, headerMethod, uint16(zip.Deflate)))
	add("two images at the same offset", Trains, patch(Pack(good, Entry{Name: "b.png", Data: picture}), directoryHeader, 1, headerOffset, uint32(0)))
	add("an image beyond the end of the file", NoImages, patch(whole, directoryHeader, 0, headerOffset, uint32(1<<30)))

	// Wrong directories.
	end := record(whole, directoryEnd, 0)
	add("only the signature of a zip", NotZip, []byte(fileHeader))
	add("a truncated directory", NotZip, whole[:end-10])
	add("a truncated end record", NotZip, whole[:len(whole)-4])
	add("a directory beyond the end of the file", NoImages, patch(whole, directoryEnd, 0, endDirectoryOffset, uint32(1<<31)))
	add("a directory that declares 60,000 entries", NotZip, patch(patch(whole, directoryEnd, 0, endRecords, uint16(60_000)), directoryEnd, 0, endRecordsHere, uint16(60_000)))
	add("zip64: 2^63 entries", NotZip, withZip64End(whole, 1<<63, uint64(end-record(whole, directoryHeader, 0)), uint64(record(whole, directoryHeader, 0))))
	add("a comment with the end record of an empty directory", NoImages, withComment(whole, directoryEnd+strings.Repeat("\x00", 18)))
	return out
}

// repeat returns n copies of an entry.
func repeat(e Entry, n int) []Entry {
	out := make([]Entry, n)
	for i := range out {
		out[i] = e
	}
	return out
}

package hostile

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// Outcome is what must become of a data set.
type Outcome int

// The outcomes of a training on a data set.
const (
	// NotZip is told that the file is no zip.
	NotZip Outcome = iota
	// Oversized is told that it is too large.
	Oversized
	// NoImages is told that there is nothing to train on.
	NoImages
	// Trains holds a good image as well, and is trained on that; what means harm
	// is passed over.
	Trains
)

// Dataset is a zip of images that means harm.
type Dataset struct {
	Name string
	Want Outcome
	Data []byte
}

// Datasets are the zips for a training. Some would write a file at the path
// canary. The limits must be 100 files, 64 MiB unpacked, and the ratio and all
// others those of the service.
func Datasets(canary string) []Dataset {
	var out []Dataset
	add := func(name string, want Outcome, data []byte) { out = append(out, Dataset{name, want, data}) }
	picture := Picture()
	good := Entry{Name: "good.png", Data: picture}
	whole := Pack(good)
	evil := []byte("written by a data set")
	climbing := strings.Repeat("../", 16) + strings.TrimPrefix(canary, "/")

	// Bombs.
	add("an image that claims 4 GB", Oversized, Pack(good, Entry{Name: "a.png", Data: evil, Method: zip.Deflate, Size: 4<<30 - 2}))
	add("an image that claims 2^62 bytes", Oversized, Pack(good, Entry{Name: "a.png", Data: evil, Size: 1 << 62, PackedSize: 1 << 62}))
	add("images that claim 2^64 bytes together", Oversized, Pack(Entry{Name: "a.png", Data: evil, Size: 1 << 63}, Entry{Name: "b.png", Data: evil, Size: 1 << 63}))
	add("an image of 65 MiB of zeros", Oversized, Pack(good, Entry{Name: "a.bmp", Data: make([]byte, 65<<20), Method: zip.Deflate}))
	add("an image of 40 MiB of zeros, above an image's limit", Trains, Pack(good, Entry{Name: "a.bmp", Data: make([]byte, 40<<20), Method: zip.Deflate}))
	add("an image that unpacks to more than it says", Trains, Pack(good, Entry{Name: "a.png", Data: make([]byte, 60<<20), Method: zip.Deflate, Size: 10}))
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
	add("a zip that is named as an image", NoImages, Pack(Entry{Name: "inner.png", Data: whole}))
	add("class names of 900,000 brackets", Trains, Pack(good, Entry{Name: "data.yaml", Data: bytes.Repeat([]byte("["), 900_000)}))
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	add("class names that refer to themselves a billion times", Trains, Pack(good, Entry{Name: "data.yaml", Data: []byte(laughs + "names: *j\n")}))
	add("class names that call a constructor", Trains, Pack(good, Entry{Name: "data.yaml", Data: []byte("names: !!python/object/apply:os.system ['touch " + canary + "']\n")}))

	// Names.
	add("names that climb out", Trains, Pack(good, Entry{Name: climbing + ".png", Data: evil}, Entry{Name: "/" + climbing + ".png", Data: evil},
		Entry{Name: strings.ReplaceAll(climbing, "/", `\`) + ".png", Data: evil}, Entry{Name: canary + ".png", Data: picture}))
	add("links to secrets", NoImages, Pack(Entry{Name: "a.png", Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink | 0o777}))
	add("a link to the canary's folder, and a file under it", Trains, Pack(good, Entry{Name: "x.png", Data: []byte(canary), Mode: fs.ModeSymlink | 0o777},
		Entry{Name: "x.png/y.png", Data: evil}))
	add("a device", Trains, Pack(good, Entry{Name: "a.png", Data: evil, Mode: fs.ModeDevice | 0o666}))
	add("names with a zero byte", Trains, Pack(good, Entry{Name: "a\x00.png", Data: evil}))
	add("names of line ends and markup", Trains, Pack(good, Entry{Name: "a\n\r\x1b[2J<script>.png", Data: evil}))
	add("a name that is no UTF-8", Trains, Pack(good, Entry{Name: "\xff\xfe\xc0.png", Data: evil}))
	add("a name of 60,000 bytes", Trains, Pack(good, Entry{Name: strings.Repeat("n", 60_000) + ".png", Data: evil}))
	add("one name a hundred times", Trains, Pack(repeat(Entry{Name: "a.png", Data: picture}, 100)...))
	add("only hidden files", NoImages, Pack(Entry{Name: ".a.png", Data: picture}, Entry{Name: "__MACOSX/a.png", Data: picture}))
	add("names without anything but an ending", NoImages, Pack(Entry{Name: ".png", Data: picture}))

	// Ways of packing, and sizes that lie.
	add("an encrypted image", NoImages, Pack(Entry{Name: "a.png", Data: picture, Flags: 1}))
	add("AES's method", NoImages, Pack(Entry{Name: "a.png", Data: picture, Method: 99}))
	add("a wrong checksum", NoImages, Pack(Entry{Name: "a.png", Data: picture, CRC32: 0xdeadbeef}))
	add("an image whose Deflate stream is noise", NoImages, patch(Pack(Entry{Name: "a.png", Data: picture}), directoryHeader, 0, headerMethod, uint16(zip.Deflate)))
	add("images on one place", Trains, patch(Pack(good, Entry{Name: "b.png", Data: picture}), directoryHeader, 1, headerOffset, uint32(0)))
	add("an image behind the end of the file", NoImages, patch(whole, directoryHeader, 0, headerOffset, uint32(1<<30)))

	// Directories that lie.
	end := record(whole, directoryEnd, 0)
	add("no bytes but the start of a zip", NotZip, []byte(fileHeader))
	add("a directory that is cut off", NotZip, whole[:end-10])
	add("an end that is cut off", NotZip, whole[:len(whole)-4])
	add("a directory behind the end of the file", NoImages, patch(whole, directoryEnd, 0, endDirectoryOffset, uint32(1<<31)))
	add("a directory of 60,000 entries it has not", NotZip, patch(patch(whole, directoryEnd, 0, endRecords, uint16(60_000)), directoryEnd, 0, endRecordsHere, uint16(60_000)))
	add("zip64: 2^63 entries", NotZip, withZip64End(whole, 1<<63, uint64(end-record(whole, directoryHeader, 0)), uint64(record(whole, directoryHeader, 0))))
	add("a comment that holds the end of an empty directory", NoImages, withComment(whole, directoryEnd+strings.Repeat("\x00", 18)))
	return out
}

func repeat(e Entry, n int) []Entry {
	out := make([]Entry, n)
	for i := range out {
		out[i] = e
	}
	return out
}

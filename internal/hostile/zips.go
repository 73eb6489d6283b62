package hostile

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"strings"
)

// zips returns the files whose zip is malicious or damaged.
func zips(canary string) []File {
	var files []File
	add := func(name string, want Reason, data []byte) {
		files = append(files, File{Name: name, Class: Zip, Want: want, Data: data})
	}
	good := CheckpointEntries(binary.LittleEndian, Config())
	whole := Pack(good...)
	with := func(i int, change func(*Entry)) []byte {
		es := slices.Clone(good)
		change(&es[i])
		return Pack(es...)
	}

	// Bombs.
	add("a pickle that declares 1 GB", TooLarge, with(0, func(e *Entry) { e.Method, e.Size = zip.Deflate, 1<<30 }))
	add("a pickle that unpacks 1000-fold", TooLarge, with(0, func(e *Entry) { e.Method, e.Data = zip.Deflate, make([]byte, 3<<20) }))
	add("a storage that declares 2 GB", Format, with(1, func(e *Entry) { e.Method, e.Size = zip.Deflate, 2<<30 }))
	add("a byte order that unpacks 1000-fold", TooLarge, Pack(append(slices.Clone(good),
		Entry{Name: "m/byteorder", Data: make([]byte, 1<<20), Method: zip.Deflate})...))
	add("metadata that unpacks 1000-fold", TooLarge, Pack(Entry{Name: "autoencoder.pt", Data: whole},
		Entry{Name: "metadata.json", Data: make([]byte, 3<<20), Method: zip.Deflate}))
	add("a checkpoint that unpacks 1000-fold", TooLarge, Pack(Entry{Name: "autoencoder.pt", Data: make([]byte, 3<<20), Method: zip.Deflate}))
	add("metadata of a million brackets", Metadata, Pack(Entry{Name: "autoencoder.pt", Data: whole},
		Entry{Name: "metadata.json", Data: bytes.Repeat([]byte("["), 1<<20)}))
	add("metadata of a million empty names", Metadata, Pack(Entry{Name: "autoencoder.pt", Data: whole},
		Entry{Name: "metadata.json", Data: []byte(`{"threshold":1,"class_names":[""` + strings.Repeat(`,""`, 1<<20) + `]}`)}))
	many := make([]Entry, 4097)
	for i := range many {
		many[i].Name = fmt.Sprint(i)
	}
	add("4097 entries", TooLarge, Pack(many...))

	// Overlapping entries and nested zips.
	add("two entries at the same offset", Format, patch(whole, directoryHeader, 2, headerOffset, uint32(record(whole, fileHeader, 1))))
	add("an entry that overlaps the next ones", Format, spanning(good))
	deep := whole
	for range 40 {
		deep = Pack(Entry{Name: "autoencoder.pt", Data: deep})
	}
	add("a zip in 40 zips", Format, deep)
	add("a zip in a zip in a zip", Format, Pack(Entry{Name: "autoencoder.pt", Data: Pack(Entry{Name: "autoencoder.pt", Data: whole})}))

	// Sizes and sums.
	add("a stored entry with two different sizes", Format, with(1, func(e *Entry) { e.Size = 1 << 20 }))
	add("a pickle of 2^60 bytes by zip64", Format, with(0, func(e *Entry) { e.Size, e.PackedSize = 1<<60, 1<<60 }))
	add("a pickle that unpacks to more than its size", Format, with(0, func(e *Entry) { e.Method, e.Size = zip.Deflate, 10 }))
	add("a pickle that unpacks to less than its size", Format, with(0, func(e *Entry) { e.Method, e.Size = zip.Deflate, 1<<16 }))
	add("a pickle with a wrong checksum", Format, with(0, func(e *Entry) { e.CRC32 = 0xdeadbeef }))
	add("a storage with a wrong checksum", Format, with(1, func(e *Entry) { e.CRC32 = 0xdeadbeef }))
	add("an invalid Deflate stream", Format, patch(whole, directoryHeader, 0, headerMethod, uint16(zip.Deflate)))
	add("a storage that is too short", Format, with(1, func(e *Entry) { e.Data = e.Data[:100] }))
	add("a storage that is too long", Format, with(1, func(e *Entry) { e.Data = make([]byte, 1<<20) }))
	add("a weight that is not finite", Format, with(1, func(e *Entry) { e.Data = bytes.Repeat([]byte{0xff}, 108) }))
	add("a missing storage", Format, Pack(slices.Delete(slices.Clone(good), 1, 2)...))

	// Encryption and compression methods.
	add("an encrypted entry", Format, with(0, func(e *Entry) { e.Flags = 1 }))
	add("a strongly encrypted entry", Format, with(0, func(e *Entry) { e.Flags = 1 | 1<<6 }))
	add("compression method LZMA", Format, with(0, func(e *Entry) { e.Method = 14 }))
	add("compression method AES", Format, with(0, func(e *Entry) { e.Method = 99 }))

	// Names.
	evil := []byte("written by a model file")
	climbing := strings.Repeat("../", 16) + strings.TrimPrefix(canary, "/")
	add("names that traverse to a parent folder", Format, Pack(Entry{Name: climbing, Data: evil}, Entry{Name: canary, Data: evil},
		Entry{Name: "m/../" + climbing, Data: evil}, Entry{Name: strings.ReplaceAll(climbing, "/", `\`), Data: evil}))
	add("names with a NUL byte", Format, Pack(Entry{Name: "m/data.pkl\x00.txt", Data: evil}, Entry{Name: "autoencoder.pt\x00", Data: evil}))
	add("names that are links", Format, Pack(Entry{Name: "m/data.pkl", Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink | 0o777}))
	add("a link to the canary and a file below it", Format, Pack(Entry{Name: "m", Data: []byte(canary), Mode: fs.ModeSymlink | 0o777},
		Entry{Name: "m/data", Data: evil}))
	add("a folder named as a checkpoint", Format, Pack(Entry{Name: "autoencoder.pt/"}))
	add("names of 60,000 bytes", Format, Pack(Entry{Name: strings.Repeat("n", 60_000) + "/x", Data: evil}))
	add("a duplicate name", Format, Pack(append(slices.Clone(good), good[1])...))
	add("two checkpoints", Format, Pack(append(slices.Clone(good), Entry{Name: "n/data.pkl", Data: good[0].Data})...))
	add("a TorchScript program", Format, Pack(append(slices.Clone(good), Entry{Name: "m/constants.pkl", Data: Asm(")", Stop)})...))
	add("two checkpoints in a training's zip", Format, Pack(Entry{Name: "a/autoencoder.pt", Data: whole}, Entry{Name: "b/autoencoder.pt", Data: whole}))
	add("two sets of metadata", Format, Pack(Entry{Name: "autoencoder.pt", Data: whole}, Entry{Name: "a/metadata.json", Data: []byte(`{"threshold":1}`)},
		Entry{Name: "b/metadata.json", Data: []byte(`{"threshold":9}`)}))
	add("an unknown byte order", Format, Pack(append(slices.Clone(good), Entry{Name: "m/byteorder", Data: []byte("middle")})...))
	add("metadata of another checkpoint", Metadata, Pack(Entry{Name: "autoencoder.pt", Data: whole},
		Entry{Name: "metadata.json", Data: []byte(`{"threshold":1,"files":{"autoencoder.pt":"00"}}`)}))
	add("metadata without a threshold", Metadata, Pack(Entry{Name: "autoencoder.pt", Data: whole}, Entry{Name: "metadata.json", Data: []byte(`{}`)}))
	add("metadata of an unknown measure", Metadata, Pack(Entry{Name: "autoencoder.pt", Data: whole},
		Entry{Name: "metadata.json", Data: []byte(`{"threshold":1,"decision":{"measure":"vibes","threshold":1}}`)}))
	add("an empty checkpoint", Format, Pack(Entry{Name: "autoencoder.pt"}))
	add("a truncated checkpoint", Format, Pack(Entry{Name: "autoencoder.pt", Data: whole[:300]}))
	add("metadata alone", Format, Pack(Entry{Name: "metadata.json", Data: []byte(`{"threshold":1}`)}))
	add("photos", Format, Pack(Entry{Name: "a/b.png", Data: []byte("x")}))

	return append(files, directories(whole)...)
}

// spanning returns a checkpoint whose first storage overlaps the headers and data of
// the following ones, so that the same bytes are unpacked twice.
func spanning(entries []Entry) []byte {
	data := Pack(entries...)
	from := record(data, fileHeader, 1) + 30 + len(entries[1].Name)
	to := record(data, fileHeader, 4)
	for i, v := range map[int]any{headerCRC32: crc32.ChecksumIEEE(data[from:to]), headerPackedSize: uint32(to - from), headerSize: uint32(to - from)} {
		data = patch(data, directoryHeader, 1, i, v)
	}
	return data
}

// directories returns zips with a wrong directory, derived from a valid zip.
func directories(whole []byte) []File {
	var files []File
	add := func(name string, want Reason, data []byte) {
		files = append(files, File{Name: name, Class: Zip, Want: want, Data: data})
	}
	end := record(whole, directoryEnd, 0)
	directory := record(whole, directoryHeader, 0)
	add("no entries", Format, Pack())
	add("only the signature of a zip", Format, []byte(fileHeader))
	add("a truncated directory", Format, whole[:end-20])
	add("a truncated end record", Format, whole[:len(whole)-5])
	add("a directory that declares 60,000 entries", Format,
		patch(patch(whole, directoryEnd, 0, endRecords, uint16(60_000)), directoryEnd, 0, endRecordsHere, uint16(60_000)))
	add("a directory that declares too few entries", Format,
		patch(patch(whole, directoryEnd, 0, endRecords, uint16(1)), directoryEnd, 0, endRecordsHere, uint16(1)))
	add("a directory beyond the end of the file", Format, patch(whole, directoryEnd, 0, endDirectoryOffset, uint32(1<<31)))
	add("a directory that begins inside of an entry", Format, patch(whole, directoryEnd, 0, endDirectoryOffset, uint32(directory-7)))
	add("a directory larger than the file", Format, patch(whole, directoryEnd, 0, endDirectorySize, uint32(1<<31)))
	add("an entry beyond the end of the file", Format, patch(whole, directoryHeader, 0, headerOffset, uint32(1<<31)))
	add("an entry without a header at its offset", Format, patch(whole, directoryHeader, 1, headerOffset, uint32(9)))
	add("an entry with a name beyond the end of the file", Format, patch(whole, directoryHeader, 0, headerNameLength, uint16(60_000)))
	add("an entry with an extra field beyond the end of the file", Format, patch(whole, directoryHeader, 0, headerExtraLength, uint16(60_000)))
	add("a packed size beyond the end of the file", Format, patch(whole, directoryHeader, 1, headerPackedSize, uint32(1<<30)))
	add("a size of 2^32-1 without zip64", Format, patch(whole, directoryHeader, 1, headerSize, uint32(1<<32-1)))
	size := uint64(end - directory)
	add("zip64: 2^63 entries", Format, withZip64End(whole, 1<<63, size, uint64(directory)))
	add("zip64: 2^40 entries", Format, withZip64End(whole, 1<<40, size, uint64(directory)))
	add("zip64: a directory at 2^63", Format, withZip64End(whole, 7, size, 1<<63))
	add("zip64: a directory of 2^64-1 bytes", Format, withZip64End(whole, 7, 1<<64-1, uint64(directory)))
	// Readers use the last end record in the file, even one inside of a comment.
	add("a comment with the end record of an empty directory", Format, withComment(whole, directoryEnd+strings.Repeat("\x00", 18)))
	add("a comment with a zip", Format, withComment(whole, string(whole)))
	add("a comment with 5000 headers", TooLarge, withComment(whole, strings.Repeat(directoryHeader, 5000)))
	add("a truncated comment", Format, patch(whole, directoryEnd, 0, endCommentLength, uint16(60_000)))
	add("two zips in a row", Format, append(bytes.Clone(whole), whole...))
	add("a zip after a picture", Format, append([]byte("\x89PNG\r\n\x1a\n0000"), whole...))
	add("a zip after a program", Format, append([]byte("#!/bin/sh\nexit\n"), whole...))
	return files
}

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

// zips are the files whose harm is in how they are packed.
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
	add("a pickle that claims 1 GB", TooLarge, with(0, func(e *Entry) { e.Method, e.Size = zip.Deflate, 1<<30 }))
	add("a pickle that unpacks 1000-fold", TooLarge, with(0, func(e *Entry) { e.Method, e.Data = zip.Deflate, make([]byte, 3<<20) }))
	add("a storage that claims 2 GB", Format, with(1, func(e *Entry) { e.Method, e.Size = zip.Deflate, 2<<30 }))
	add("a byte order that is a bomb", TooLarge, Pack(append(slices.Clone(good),
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

	// Entries that lie over each other.
	add("two entries of one place", Format, patch(whole, directoryHeader, 2, headerOffset, uint32(record(whole, fileHeader, 1))))
	add("an entry that spans the next ones", Format, spanning(good))
	deep := whole
	for range 40 {
		deep = Pack(Entry{Name: "autoencoder.pt", Data: deep})
	}
	add("a zip in 40 zips", Format, deep)
	add("a zip in a zip in a zip", Format, Pack(Entry{Name: "autoencoder.pt", Data: Pack(Entry{Name: "autoencoder.pt", Data: whole})}))

	// Sizes and sums.
	add("a stored entry of two sizes", Format, with(1, func(e *Entry) { e.Size = 1 << 20 }))
	add("a pickle of 2^60 bytes by zip64", Format, with(0, func(e *Entry) { e.Size, e.PackedSize = 1<<60, 1<<60 }))
	add("a pickle that unpacks to more than it says", Format, with(0, func(e *Entry) { e.Method, e.Size = zip.Deflate, 10 }))
	add("a pickle that unpacks to less than it says", Format, with(0, func(e *Entry) { e.Method, e.Size = zip.Deflate, 1<<16 }))
	add("a pickle with a wrong checksum", Format, with(0, func(e *Entry) { e.CRC32 = 0xdeadbeef }))
	add("a storage with a wrong checksum", Format, with(1, func(e *Entry) { e.CRC32 = 0xdeadbeef }))
	add("a Deflate stream of noise", Format, patch(whole, directoryHeader, 0, headerMethod, uint16(zip.Deflate)))
	add("a storage that is too short", Format, with(1, func(e *Entry) { e.Data = e.Data[:100] }))
	add("a storage that is too long", Format, with(1, func(e *Entry) { e.Data = make([]byte, 1<<20) }))
	add("a weight that is not finite", Format, with(1, func(e *Entry) { e.Data = bytes.Repeat([]byte{0xff}, 108) }))
	add("a storage that is missing", Format, Pack(slices.Delete(slices.Clone(good), 1, 2)...))

	// Ways of packing.
	add("an encrypted entry", Format, with(0, func(e *Entry) { e.Flags = 1 }))
	add("a strongly encrypted entry", Format, with(0, func(e *Entry) { e.Flags = 1 | 1<<6 }))
	add("LZMA", Format, with(0, func(e *Entry) { e.Method = 14 }))
	add("AES's method", Format, with(0, func(e *Entry) { e.Method = 99 }))

	// Names.
	evil := []byte("written by a model file")
	climbing := strings.Repeat("../", 16) + strings.TrimPrefix(canary, "/")
	add("names that climb out", Format, Pack(Entry{Name: climbing, Data: evil}, Entry{Name: canary, Data: evil},
		Entry{Name: "m/../" + climbing, Data: evil}, Entry{Name: strings.ReplaceAll(climbing, "/", `\`), Data: evil}))
	add("names with a zero byte", Format, Pack(Entry{Name: "m/data.pkl\x00.txt", Data: evil}, Entry{Name: "autoencoder.pt\x00", Data: evil}))
	add("names that are links", Format, Pack(Entry{Name: "m/data.pkl", Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink | 0o777}))
	add("a link to the canary, and a file under it", Format, Pack(Entry{Name: "m", Data: []byte(canary), Mode: fs.ModeSymlink | 0o777},
		Entry{Name: "m/data", Data: evil}))
	add("a folder named as a checkpoint", Format, Pack(Entry{Name: "autoencoder.pt/"}))
	add("names of 60,000 bytes", Format, Pack(Entry{Name: strings.Repeat("n", 60_000) + "/x", Data: evil}))
	add("a name twice", Format, Pack(append(slices.Clone(good), good[1])...))
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
	add("a checkpoint of nothing", Format, Pack(Entry{Name: "autoencoder.pt"}))
	add("a checkpoint cut short", Format, Pack(Entry{Name: "autoencoder.pt", Data: whole[:300]}))
	add("metadata alone", Format, Pack(Entry{Name: "metadata.json", Data: []byte(`{"threshold":1}`)}))
	add("photos", Format, Pack(Entry{Name: "a/b.png", Data: []byte("x")}))

	return append(files, directories(whole)...)
}

// spanning is a checkpoint whose first storage reaches over the headers and the
// data of those behind it: the same bytes are unpacked twice.
func spanning(entries []Entry) []byte {
	data := Pack(entries...)
	from := record(data, fileHeader, 1) + 30 + len(entries[1].Name)
	to := record(data, fileHeader, 4)
	for i, v := range map[int]any{headerCRC32: crc32.ChecksumIEEE(data[from:to]), headerPackedSize: uint32(to - from), headerSize: uint32(to - from)} {
		data = patch(data, directoryHeader, 1, i, v)
	}
	return data
}

// directories are zips whose directory is not what it says, made from a good one.
func directories(whole []byte) []File {
	var files []File
	add := func(name string, want Reason, data []byte) {
		files = append(files, File{Name: name, Class: Zip, Want: want, Data: data})
	}
	end := record(whole, directoryEnd, 0)
	directory := record(whole, directoryHeader, 0)
	add("no entries", Format, Pack())
	add("the start of a zip", Format, []byte(fileHeader))
	add("a directory that is cut off", Format, whole[:end-20])
	add("an end that is cut off", Format, whole[:len(whole)-5])
	add("a directory of 60,000 entries it has not", Format,
		patch(patch(whole, directoryEnd, 0, endRecords, uint16(60_000)), directoryEnd, 0, endRecordsHere, uint16(60_000)))
	add("a directory of fewer entries than it has", Format,
		patch(patch(whole, directoryEnd, 0, endRecords, uint16(1)), directoryEnd, 0, endRecordsHere, uint16(1)))
	add("a directory behind the end of the file", Format, patch(whole, directoryEnd, 0, endDirectoryOffset, uint32(1<<31)))
	add("a directory that begins within an entry", Format, patch(whole, directoryEnd, 0, endDirectoryOffset, uint32(directory-7)))
	add("a directory larger than the file", Format, patch(whole, directoryEnd, 0, endDirectorySize, uint32(1<<31)))
	add("an entry behind the end of the file", Format, patch(whole, directoryHeader, 0, headerOffset, uint32(1<<31)))
	add("an entry at no header", Format, patch(whole, directoryHeader, 1, headerOffset, uint32(9)))
	add("an entry whose name goes on and on", Format, patch(whole, directoryHeader, 0, headerNameLength, uint16(60_000)))
	add("an entry whose extra field goes on and on", Format, patch(whole, directoryHeader, 0, headerExtraLength, uint16(60_000)))
	add("a packed size behind the end of the file", Format, patch(whole, directoryHeader, 1, headerPackedSize, uint32(1<<30)))
	add("a size of 2^32-1 without zip64", Format, patch(whole, directoryHeader, 1, headerSize, uint32(1<<32-1)))
	size := uint64(end - directory)
	add("zip64: 2^63 entries", Format, withZip64End(whole, 1<<63, size, uint64(directory)))
	add("zip64: 2^40 entries", Format, withZip64End(whole, 1<<40, size, uint64(directory)))
	add("zip64: a directory at 2^63", Format, withZip64End(whole, 7, size, 1<<63))
	add("zip64: a directory of 2^64-1 bytes", Format, withZip64End(whole, 7, 1<<64-1, uint64(directory)))
	// The last end of a directory in the file counts, even one in a comment.
	add("a comment that holds the end of an empty directory", Format, withComment(whole, directoryEnd+strings.Repeat("\x00", 18)))
	add("a comment that holds a zip", Format, withComment(whole, string(whole)))
	add("a comment that holds 5000 headers", TooLarge, withComment(whole, strings.Repeat(directoryHeader, 5000)))
	add("a comment that is cut off", Format, patch(whole, directoryEnd, 0, endCommentLength, uint16(60_000)))
	add("two zips in a row", Format, append(bytes.Clone(whole), whole...))
	add("a zip behind a picture", Format, append([]byte("\x89PNG\r\n\x1a\n0000"), whole...))
	add("a zip behind a program", Format, append([]byte("#!/bin/sh\nexit\n"), whole...))
	return files
}

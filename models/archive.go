package models

import (
	"archive/zip"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
)

const (
	// maxEntries bounds the entries of a zip. A checkpoint has one for each tensor
	// and a few more.
	maxEntries = 4096
	// maxRatio bounds the compression ratio of an entry. Weights hardly compress;
	// a metadata.json compresses about tenfold.
	maxRatio = 200
	// ratioExemptSize is the unpacked size, in bytes, up to which maxRatio does
	// not apply.
	ratioExemptSize = 1 << 20
)

// archive is a zip in memory whose directory has been checked. Entry names are
// looked up, never used as paths.
type archive struct {
	files map[string]*zip.File
	names []string
	size  uint64
	// budget is the number of bytes that may still be unpacked. All archives
	// opened for one model share it.
	budget *int64
}

// isZip reports whether data starts with the signature of a zip, possibly empty.
func isZip(data []byte) bool {
	return bytes.HasPrefix(data, []byte("PK\x03\x04")) || bytes.HasPrefix(data, []byte("PK\x05\x06"))
}

func openArchive(data []byte, budget *int64) (*archive, error) {
	// The entry count in the directory cannot be trusted, and a parsed entry takes
	// more memory than its bytes in the file.
	if n := bytes.Count(data, []byte("PK\x01\x02")); n > maxEntries {
		return nil, fmt.Errorf("%w: a zip of about %d entries, at most %d are read", ErrTooLarge, n, maxEntries)
	}
	if err := checkDirectoryEnd(data); err != nil {
		return nil, err
	}
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, fmt.Errorf("%w: the zip is damaged or cut short: %w", ErrFormat, err)
	}
	a := &archive{files: make(map[string]*zip.File, len(r.File)), size: uint64(len(data)), budget: budget}
	for _, f := range r.File {
		if _, ok := a.files[f.Name]; ok {
			return nil, fmt.Errorf("%w: the zip has %.80q twice, expected each name once", ErrFormat, f.Name)
		}
		a.files[f.Name] = f
		a.names = append(a.names, f.Name)
	}
	if err := checkEntryOffsets(data, r.File); err != nil {
		return nil, err
	}
	return a, nil
}

// checkDirectoryEnd returns ErrFormat unless the central directory is directly
// before the end record that refers to it and that record is the last one in the
// file. Zip readers disagree on which of several directories is valid.
func checkDirectoryEnd(data []byte) error {
	// Sizes in bytes: the end of the central directory, the zip64 locator, and the
	// zip64 end of the central directory.
	const record, locator, record64 = 22, 20, 56
	wrong := func(what string) error { return fmt.Errorf("%w: the zip is damaged or cut short: %s", ErrFormat, what) }
	at := bytes.LastIndex(data, []byte("PK\x05\x06"))
	if at < 0 || len(data)-at < record {
		return wrong("it has no directory")
	}
	end := data[at:]
	if comment := int(binary.LittleEndian.Uint16(end[20:])); comment != len(end)-record {
		return wrong(fmt.Sprintf("%d bytes follow its directory, expected a comment of %d", len(end)-record, comment))
	}
	records, size, offset := binary.LittleEndian.Uint16(end[10:]), uint64(binary.LittleEndian.Uint32(end[12:])), uint64(binary.LittleEndian.Uint32(end[16:]))
	if at >= locator && bytes.HasPrefix(data[at-locator:], []byte("PK\x06\x07")) {
		at64 := binary.LittleEndian.Uint64(data[at-locator+8:])
		if at < locator+record64 || at64 > uint64(at-locator-record64) || !bytes.HasPrefix(data[at64:], []byte("PK\x06\x06")) {
			return wrong("its zip64 end record is not at the recorded offset")
		}
		at = int(at64)
		if records == math.MaxUint16 || size == math.MaxUint32 || offset == math.MaxUint32 {
			size, offset = binary.LittleEndian.Uint64(data[at64+40:]), binary.LittleEndian.Uint64(data[at64+48:])
		}
	}
	if offset > uint64(at) || size != uint64(at)-offset {
		return wrong(fmt.Sprintf("its directory is recorded as %d bytes at byte %d, but ends at byte %d", size, offset, at))
	}
	return nil
}

// checkEntryOffsets returns ErrFormat unless the first entry is at the start of
// the file and no entries overlap. A bundle truncated directly after the
// checkpoint in it ends with that checkpoint's directory and would look like
// the checkpoint; overlapping entries are a zip bomb (Fifield, 2019).
func checkEntryOffsets(data []byte, files []*zip.File) error {
	const header = 30 // bytes of a local header before the name and extra field
	type span struct{ from, to uint64 }
	spans := make([]span, len(files))
	for i, f := range files {
		offset, err := f.DataOffset()
		if err != nil {
			return fmt.Errorf("%w: the zip is damaged or cut short: %w", ErrFormat, err)
		}
		spans[i] = span{uint64(offset), uint64(offset) + min(f.CompressedSize64, math.MaxInt64)}
	}
	if len(files) == 0 || len(data) < header {
		return nil
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	name, extra := binary.LittleEndian.Uint16(data[26:]), binary.LittleEndian.Uint16(data[28:])
	if spans[0].from != header+uint64(name)+uint64(extra) {
		return fmt.Errorf("%w: the zip does not begin at the start of the file; it was truncated or joined with another file", ErrFormat)
	}
	for i, s := range spans[1:] {
		if last := spans[i]; s.from < last.to+header {
			return fmt.Errorf("%w: the zip has entries that overlap at byte %d", ErrFormat, s.from)
		}
	}
	return nil
}

func (a *archive) has(name string) bool {
	_, ok := a.files[name]
	return ok
}

// find returns the name of the only entry with this base name, in any folder,
// because a zip may have been unpacked and packed again. It returns "" when there
// is none, and ErrFormat, wrapped, when there are several.
func (a *archive) find(base string) (string, error) {
	found := ""
	for _, name := range a.names {
		if path.Base(name) != base || name[len(name)-1] == '/' {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("%w: the zip has both %.80q and %.80q, expected one %s", ErrFormat, found, name, base)
		}
		found = name
	}
	return found, nil
}

// read unpacks an entry of at most limit bytes and checks its CRC. It returns
// ErrFormat or ErrTooLarge, wrapped.
func (a *archive) read(name string, limit int64) ([]byte, error) {
	f, ok := a.files[name]
	if !ok {
		return nil, fmt.Errorf("%w: the zip has no %.80q", ErrFormat, name)
	}
	size, packed := f.UncompressedSize64, f.CompressedSize64
	switch {
	case f.Flags&1 != 0:
		return nil, fmt.Errorf("%w: %.80q is encrypted", ErrFormat, name)
	case f.Method != zip.Store && f.Method != zip.Deflate:
		return nil, fmt.Errorf("%w: %.80q is compressed by method %d, expected none or Deflate", ErrFormat, name, f.Method)
	case packed > a.size || f.Method == zip.Store && packed != size:
		return nil, fmt.Errorf("%w: %.80q claims %d bytes packed and %d unpacked in a zip of %d", ErrFormat, name, packed, size, a.size)
	case size > uint64(max(limit, 0)):
		return nil, fmt.Errorf("%w: %.80q has %d bytes, at most %d are read", ErrTooLarge, name, size, limit)
	case size > uint64(max(*a.budget, 0)):
		return nil, fmt.Errorf("%w: %.80q unpacks to %d bytes, only %d may still be unpacked", ErrTooLarge, name, size, *a.budget)
	case size > ratioExemptSize && size/maxRatio > packed:
		return nil, fmt.Errorf("%w: %.80q unpacks from %d to %d bytes, expected a ratio of at most %d", ErrTooLarge, name, packed, size, maxRatio)
	}
	*a.budget -= int64(size)
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %.80q cannot be unpacked: %w", ErrFormat, name, err)
	}
	defer r.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("%w: %.80q cannot be unpacked: %w", ErrFormat, name, err)
	}
	// Reading up to EOF checks the CRC and detects an entry longer than its size.
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("%w: %.80q does not end after the %d bytes it claims: %v", ErrFormat, name, size, err)
	}
	return data, nil
}

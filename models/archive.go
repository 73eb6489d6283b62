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
	// maxEntries bounds the entries of a zip: a checkpoint has one for each
	// tensor and a handful more.
	maxEntries = 4096
	// maxRatio is how many times its compressed size an entry may unpack to.
	// Weights hardly compress at all, a metadata.json some ten times.
	maxRatio = 200
	// freeRatio is the size up to which the ratio is of no concern.
	freeRatio = 1 << 20
)

// archive is a zip in memory whose directory has been checked. Names are only
// looked up, never used as paths.
type archive struct {
	files map[string]*zip.File
	names []string
	size  uint64
	// budget is what may still be unpacked, in bytes, shared by all archives
	// that are opened while one model is read.
	budget *int64
}

// isZip reports whether data begins as a zip does, an empty one included.
func isZip(data []byte) bool {
	return bytes.HasPrefix(data, []byte("PK\x03\x04")) || bytes.HasPrefix(data, []byte("PK\x05\x06"))
}

func openArchive(data []byte, budget *int64) (*archive, error) {
	// The directory's own count of its entries cannot be trusted, and each
	// takes more memory when read than in the file.
	if n := bytes.Count(data, []byte("PK\x01\x02")); n > maxEntries {
		return nil, fmt.Errorf("%w: a zip of about %d entries, at most %d are read", ErrTooLarge, n, maxEntries)
	}
	if err := endsAtTheEnd(data); err != nil {
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
	if err := liesInOrder(data, r.File); err != nil {
		return nil, err
	}
	return a, nil
}

// endsAtTheEnd returns ErrFormat when the directory of a zip is not right before
// the record that names it, or that record not the last thing in the file.
// Readers disagree on which directory counts where there could be two.
func endsAtTheEnd(data []byte) error {
	const record, place, record64 = 22, 20, 56 // the end of a directory, zip64's pointer to its own end, and that
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
	if at >= place && bytes.HasPrefix(data[at-place:], []byte("PK\x06\x07")) {
		at64 := binary.LittleEndian.Uint64(data[at-place+8:])
		if at < place+record64 || at64 > uint64(at-place-record64) || !bytes.HasPrefix(data[at64:], []byte("PK\x06\x06")) {
			return wrong("its zip64 directory is not where it says")
		}
		at = int(at64)
		if records == math.MaxUint16 || size == math.MaxUint32 || offset == math.MaxUint32 {
			size, offset = binary.LittleEndian.Uint64(data[at64+40:]), binary.LittleEndian.Uint64(data[at64+48:])
		}
	}
	if offset > uint64(at) || size != uint64(at)-offset {
		return wrong(fmt.Sprintf("its directory is said to be the %d bytes from byte %d on, and ends at byte %d", size, offset, at))
	}
	return nil
}

// liesInOrder returns ErrFormat when the first entry of a zip is not the first
// thing in the file, or when entries lie over each other. A bundle that was cut
// off right behind the checkpoint in it ends with that checkpoint's directory,
// and would pass for it; bytes that several entries share are a bomb.
func liesInOrder(data []byte, files []*zip.File) error {
	const header = 30 // of an entry, its name and extra field following
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
		return fmt.Errorf("%w: the zip does not begin at the file's start, it was cut off or joined with another file", ErrFormat)
	}
	for i, s := range spans[1:] {
		if last := spans[i]; s.from < last.to+header {
			return fmt.Errorf("%w: the zip has entries that lie over each other at byte %d", ErrFormat, s.from)
		}
	}
	return nil
}

func (a *archive) has(name string) bool {
	_, ok := a.files[name]
	return ok
}

// find looks for the one entry with this base name, in any folder: people pack
// an unpacked zip again. It returns "" when there is none.
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

// read unpacks an entry of at most limit bytes and checks its CRC.
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
		return nil, fmt.Errorf("%w: %.80q unpacks to %d bytes, %d are left of what is allowed in all", ErrTooLarge, name, size, *a.budget)
	case size > freeRatio && size/maxRatio > packed:
		return nil, fmt.Errorf("%w: %.80q unpacks from %d to %d bytes, at most %d times is read", ErrTooLarge, name, packed, size, maxRatio)
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
	// The end is where the CRC is checked, and where a longer entry shows.
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("%w: %.80q does not end after the %d bytes it claims: %v", ErrFormat, name, size, err)
	}
	return data, nil
}

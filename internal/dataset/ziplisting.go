package dataset

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
)

// The record that a zip's directory has of each entry begins so. entryBytes is
// what such a record may take on average, its names and comments included.
const (
	directoryRecord = "PK\x01\x02"
	entryBytes      = 256
	// A reader of zips looks for the directory in the last of these bytes first, up
	// to twice, so that records which lie there are met more than once.
	directoryTail = 1<<16 + 1<<10
)

// directoryReader reads a zip while its directory is looked for and listed. A
// directory's own count of its records cannot be trusted, and listed they take
// several times the memory that they take in the file: so both their number and
// their bytes are bounded on the way in. It returns ErrTooLarge. It is for
// one goroutine until the directory is listed.
type directoryReader struct {
	io.ReaderAt
	limit   int // records
	records int
	read    int64
	next    int64  // where the last read ended
	end     []byte // and with what: a record's mark may lie in two reads
	listed  bool   // the directory is, and what is read now are the files
}

// listZip lists a zip of so many bytes. It returns ErrTooLarge when it has
// far more files than the limits allow, and zip.NewReader's errors.
func listZip(r io.ReaderAt, size int64, lim Limits) (*zip.Reader, error) {
	d := &directoryReader{ReaderAt: r, limit: lim.Entries}
	z, err := zip.NewReader(d, size)
	d.listed = true
	return z, err
}

func (d *directoryReader) ReadAt(p []byte, at int64) (int, error) {
	n, err := d.ReaderAt.ReadAt(p, at)
	if d.listed {
		return n, err
	}
	if at != d.next {
		d.end = nil
	}
	seen := append(d.end, p[:min(n, len(directoryRecord)-1)]...)
	d.records += bytes.Count(seen, []byte(directoryRecord)) + bytes.Count(p[:n], []byte(directoryRecord))
	d.end = bytes.Clone(p[max(0, n-len(directoryRecord)+1):n])
	d.next = at + int64(n)
	d.read += int64(n)
	if most := d.limit + directoryTail/len(directoryRecord); d.records > most || d.read > int64(most)*entryBytes {
		return n, fmt.Errorf("%w: the zip lists more files than the %d that are taken, or with very long names", ErrTooLarge, d.limit)
	}
	return n, err
}

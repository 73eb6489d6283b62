package dataset

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
)

const (
	// directoryRecord is the signature of a file's record in a zip's central directory.
	directoryRecord = "PK\x01\x02"
	// entryBytes bounds the average size of a record, including name and comment.
	entryBytes = 256
	// directoryTail is the number of bytes at the end that zip.NewReader searches, up to
	// twice, for the end of the directory. Records in it are counted more than once.
	directoryTail = 1<<16 + 1<<10
)

// directoryReader bounds the records of a zip's central directory while zip.NewReader
// reads it: their number and their bytes. The number of records that the zip states
// cannot be trusted, and the listed directory takes several times its size in the file
// as memory. ReadAt returns ErrTooLarge beyond the bounds. Until the directory is listed,
// ReadAt is not safe for concurrent use.
type directoryReader struct {
	io.ReaderAt
	limit   int // on records
	records int
	read    int64
	next    int64  // offset at which the last read ended
	end     []byte // last bytes of it: a signature may extend over two reads
	listed  bool   // the directory is listed; later reads are of files
}

// listZip lists a zip of size bytes. It returns ErrTooLarge if the zip has far more files
// than the limits allow, and the errors of zip.NewReader.
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
	if limit := d.limit + directoryTail/len(directoryRecord); d.records > limit || d.read > int64(limit)*entryBytes {
		return n, fmt.Errorf("%w: the zip lists more than the %d files that are allowed, or very long names", ErrTooLarge, d.limit)
	}
	return n, err
}

package api

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"strings"
	"sync"

	"github.com/deepmed/anomaly/inference"
)

// matchPart compares a part with the known files while reading it. If the part is a
// known file, matchPart uses that file's memory and hash for it and returns nil.
// Otherwise it returns a reader of the whole part.
func (f *form) matchPart(name string, part io.Reader, known *inference.UploadMatcher) (again io.Reader, err error) {
	chunk := chunkPool.Get().(*[chunkBytes]byte)
	defer chunkPool.Put(chunk)
	for {
		n, err := part.Read(chunk[:])
		if matched := known.Next(chunk[:n]); matched < n {
			// The chunk returns to the pool before the reader is read.
			return io.MultiReader(bytes.NewReader(known.Seen()), bytes.NewReader(bytes.Clone(chunk[matched:n])), part), nil
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	sum, whole := known.Whole()
	if !whole {
		return bytes.NewReader(known.Seen()), nil
	}
	f.setMatched(name, known.Seen(), sum)
	return nil, nil
}

// setMatched sets a part to a known file.
func (f *form) setMatched(name string, file []byte, sum string) {
	f.memory[name], f.hashes[name] = file, sum
	f.remaining -= int64(len(file))
}

// maxPartHeader bounds the header of a form's first part that matchFirstPart handles,
// in bytes.
const maxPartHeader = 1 << 10

// matchFirstPart is matchPart for the first part of a form, before the form is parsed.
// It returns a reader of the parts that follow if the first part is a known file, else
// of the whole form.
//
// Most forms begin with a model of several megabytes that was sent before. Comparing it
// in the read buffer avoids two copies and the search for the boundary that a multipart
// reader makes. If the file itself contains the boundary, it is matched as a whole; only
// a client that chose such a boundary can notice.
func (f *form) matchFirstPart(body *bufio.Reader, boundary string, fields map[string]field) io.Reader {
	// Errors of the form are reported when the returned reader is read.
	start, _ := body.Peek(maxPartHeader)
	end := bytes.Index(start, []byte("\r\n\r\n"))
	if end < 0 {
		return body
	}
	header := bytes.Clone(start[:end+4])
	part, err := multipart.NewReader(bytes.NewReader(header), boundary).NextRawPart()
	if err != nil || !bytes.HasPrefix(header, []byte("--"+boundary+"\r\n")) || fields[part.FormName()].known == nil {
		return body
	}
	_, _ = body.Discard(len(header))
	known := fields[part.FormName()].known()
	for {
		_, err := body.Peek(1) // fill the buffer if it is empty
		chunk, _ := body.Peek(body.Buffered())
		matched := known.Next(chunk)
		_, _ = body.Discard(matched)
		if matched < len(chunk) || err != nil {
			break
		}
	}
	if sum, whole := known.Whole(); whole && atBoundary(body, boundary) {
		f.setMatched(part.FormName(), known.Seen(), sum)
		return body
	}
	return io.MultiReader(bytes.NewReader(header), bytes.NewReader(known.Seen()), body)
}

// atBoundary reports whether body is at the end of a part, followed by another part or
// by the end of the form.
func atBoundary(body *bufio.Reader, boundary string) bool {
	delimiter := "\r\n--" + boundary
	next, _ := body.Peek(len(delimiter) + len("--\r\n"))
	after, ok := strings.CutPrefix(string(next), delimiter)
	return ok && (strings.HasPrefix(after, "\r\n") || after == "--" || after == "--\r\n")
}

// stickyErrorReader returns its first error for every later Read. A bufio.Reader
// reports an error only once, and matchFirstPart discards it.
type stickyErrorReader struct {
	io.Reader
	err error
}

func (s *stickyErrorReader) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.Reader.Read(p)
	s.err = err
	return n, err
}

// chunkBytes is the size of the chunks that are compared. A chunk fits in the
// processor's second-level cache.
const chunkBytes = 64 << 10

// chunkPool holds the buffers of matchPart.
var chunkPool = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

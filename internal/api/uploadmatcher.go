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

// recognize reads a part as long as it is a known file, which then stands for it.
// Of any other it gives a reader that begins anew.
func (f *form) recognize(name string, part io.Reader, known *inference.UploadMatcher) (again io.Reader, err error) {
	chunk := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(chunk)
	for {
		n, err := part.Read(chunk[:])
		if taken := known.Next(chunk[:n]); taken < n {
			// The chunk is used again before this is read.
			return io.MultiReader(bytes.NewReader(known.Seen()), bytes.NewReader(bytes.Clone(chunk[taken:n])), part), nil
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
	f.found(name, known.Seen(), sum)
	return nil, nil
}

// found keeps a known file as a part.
func (f *form) found(name string, file []byte, sum string) {
	f.memory[name], f.sums[name] = file, sum
	f.length -= int64(len(file))
}

// maxPartHeader is how much of a form is looked at for the header of its first part.
const maxPartHeader = 1 << 10

// recognizeFirst passes over a form's first part where it is a known file, which then
// stands for it, and gives the rest of the form; else it gives all of it. Most forms
// begin with a model that was sent before, of several megabytes, and are compared here
// where they come in: a reader of any form copies them twice and looks for the boundary
// in them. (Who draws a boundary that stands in their own file gets it whole.)
func (f *form) recognizeFirst(body *bufio.Reader, boundary string, fields map[string]field) io.Reader {
	// Whatever is wrong with the form is found by who reads the rest.
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
		_, err := body.Peek(1) // reads on when all was taken
		chunk, _ := body.Peek(body.Buffered())
		taken := known.Next(chunk)
		_, _ = body.Discard(taken)
		if taken < len(chunk) || err != nil {
			break
		}
	}
	if sum, whole := known.Whole(); whole && atBoundary(body, boundary) {
		f.found(part.FormName(), known.Seen(), sum)
		return body
	}
	return io.MultiReader(bytes.NewReader(header), bytes.NewReader(known.Seen()), body)
}

// atBoundary says whether a part ends here, and nothing but the next one or the end of the
// form follows.
func atBoundary(body *bufio.Reader, boundary string) bool {
	delimiter := "\r\n--" + boundary
	next, _ := body.Peek(len(delimiter) + len("--\r\n"))
	after, ok := strings.CutPrefix(string(next), delimiter)
	return ok && (strings.HasPrefix(after, "\r\n") || after == "--" || after == "--\r\n")
}

// steady is a reader that ends for good with its first error: who peeks at a form may
// meet it and leave it to who reads on.
type steady struct {
	io.Reader
	err error
}

func (s *steady) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.Reader.Read(p)
	s.err = err
	return n, err
}

// chunkBytes stay in the processor's cache while they are compared.
const chunkBytes = 64 << 10

// chunks are what parts are read into to be recognized.
var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

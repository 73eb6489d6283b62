package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"os"
	"sync"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/gofiber/fiber/v2"
)

// field says how a part of a form is kept.
type field struct {
	// limit is the most bytes it may have.
	limit int64
	// spool puts it into a temporary file instead of memory.
	spool bool
	// hash takes its SHA-256 while it comes in. known tells files that were hashed
	// before, which are not hashed again; it may be nil.
	hash  bool
	known func() *inference.UploadMatcher
	// many keeps all parts of the name, of this many bytes together at most; 0
	// keeps the first.
	many int64
}

// upload is one of many parts of a name.
type upload struct {
	file string // the file name that came with it, may be empty
	data []byte
}

// form is a multipart form that was read: parts by name, each the first of its
// name. It must be closed.
type form struct {
	memory map[string][]byte
	files  map[string]*os.File
	lists  map[string][]upload
	sums   map[string]string // SHA-256 in hexadecimal
	// borrowed are the buffers of memory, by part; those of spare go back.
	borrowed map[string]*bytes.Buffer
	spare    []string
	// length is how much of the body is left, by the request's own account:
	// a hint for memory, not a promise.
	length int64
	share  *share
}

func newForm(length int64, share *share) *form {
	return &form{memory: map[string][]byte{}, files: map[string]*os.File{}, lists: map[string][]upload{},
		sums: map[string]string{}, borrowed: map[string]*bytes.Buffer{}, length: length, share: share}
}

// Close removes the temporary files.
func (f *form) Close() {
	for _, file := range f.files {
		file.Close()
		os.Remove(file.Name())
	}
	for _, name := range f.spare {
		if b := f.borrowed[name]; b != nil && b.Cap() <= largestGuess {
			b.Reset()
			buffers.Put(b)
		}
	}
}

// buffers are those of parts whose bytes nobody kept: a model that is sent again
// and again would be several megabytes of garbage each time.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// buffer gives an empty buffer for so many bytes. Sizes are rounded up, so that
// one serves for uploads that differ by an image; a Buffer that grows by itself
// doubles.
func buffer(size int64) *bytes.Buffer {
	const step = 256 << 10
	want := (int(max(size, 0)) + bytes.MinRead + step - 1) / step * step
	if b := buffers.Get().(*bytes.Buffer); b.Cap() >= want {
		return b
	}
	return bytes.NewBuffer(make([]byte, 0, want))
}

// unused says that nobody keeps a part's bytes when the form is closed.
func (f *form) unused(name string) { f.spare = append(f.spare, name) }

// text is a part as text; empty when it was not sent.
func (f *form) text(name string) string { return string(bytes.TrimSpace(f.memory[name])) }

// readAhead is how much of a body is read at a time, largestGuess how much memory
// is taken for a part before its bytes are there, and largestImageGuess for one of many
// parts: who sends a hundred of them must not have a hundred times the body's length.
const (
	readAhead         = 256 << 10
	largestGuess      = 8 << 20
	largestImageGuess = 64 << 10
)

// readers read ahead of bodies.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readAhead) }}

// maxParts bounds the parts of a form, known and unknown.
const maxParts = 100

// readForm streams a multipart body, keeping the known parts and passing over
// the rest. Parts come in any order, with or without a file name and content
// type.
func (s *Server) readForm(c *fiber.Ctx, fields map[string]field) (*form, error) {
	body := s.body(c)
	defer body.Close()
	kind, params, err := mime.ParseMediaType(c.Get(fiber.HeaderContentType))
	if err != nil || kind != fiber.MIMEMultipartForm {
		return nil, s.refuse(c, body, errNotMultipart)
	}
	if params["boundary"] == "" {
		return nil, s.refuse(c, body, errBadForm)
	}
	f := newForm(int64(c.Request().Header.ContentLength()), shareOf(c))
	// The multipart reader takes 4 KiB at a time; a model is a thousand times that.
	buffered := readers.Get().(*bufio.Reader)
	buffered.Reset(&steady{Reader: body})
	defer func() {
		buffered.Reset(nil) // or the connection would stay with it
		readers.Put(buffered)
	}()
	rest := f.recognizeFirst(buffered, params["boundary"], fields)
	if err := f.read(multipart.NewReader(rest, params["boundary"]), fields, s.options.TempDir); err != nil {
		f.Close()
		return nil, s.refuse(c, body, formError(err))
	}
	// What follows the last boundary is nobody's, but must be off the
	// connection before the next request.
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		f.Close()
		return nil, s.refuse(c, body, formError(err))
	}
	return f, nil
}

func (f *form) read(r *multipart.Reader, fields map[string]field, tempDir string) error {
	for range maxParts {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := part.FormName()
		known, ok := fields[name]
		_, inMemory := f.memory[name]
		_, onDisk := f.files[name]
		switch {
		case !ok || inMemory || onDisk:
			_, err = io.Copy(io.Discard, part)
		case known.spool:
			err = f.spool(name, part, known.limit, tempDir)
		case known.many > 0:
			err = f.append(name, part, known)
		default:
			err = f.keep(name, part, known)
		}
		if err != nil {
			return err
		}
	}
	return badRequest(fmt.Sprintf("The form has more than %d parts", maxParts))
}

// keep reads a part into memory.
func (f *form) keep(name string, part io.Reader, known field) error {
	r := io.LimitReader(part, known.limit+1)
	if known.known != nil {
		again, err := f.recognize(name, r, known.known())
		if again == nil {
			return err
		}
		r = again
	}
	data := buffer(min(f.length, known.limit, largestGuess))
	r = charged{r, f.share}
	sum := sha256.New()
	if known.hash {
		r = io.TeeReader(r, sum)
	}
	_, err := data.ReadFrom(r)
	f.length -= int64(data.Len())
	f.memory[name], f.borrowed[name] = data.Bytes(), data
	if err != nil {
		return err
	}
	if known.hash {
		f.sums[name] = hex.EncodeToString(sum.Sum(nil))
	}
	return within(name, int64(data.Len()), known.limit)
}

// append reads one of several parts into memory.
func (f *form) append(name string, part *multipart.Part, known field) error {
	before := int64(0)
	for _, u := range f.lists[name] {
		before += int64(len(u.data))
	}
	limit := min(known.limit, known.many-before)
	// An image is most of what is left of a body, where it is the last.
	buffer := bytes.NewBuffer(make([]byte, 0, max(min(f.length, limit, largestImageGuess), 0)+bytes.MinRead))
	if _, err := buffer.ReadFrom(charged{io.LimitReader(part, limit+1), f.share}); err != nil {
		return err
	}
	data := buffer.Bytes()
	f.length -= int64(len(data))
	f.lists[name] = append(f.lists[name], upload{part.FileName(), data})
	if err := within(name, int64(len(data)), known.limit); err != nil {
		return err
	}
	return within("All of "+name, before+int64(len(data)), known.many)
}

func (f *form) spool(name string, part io.Reader, limit int64, tempDir string) error {
	file, err := os.CreateTemp(tempDir, "upload-*")
	if err != nil {
		return fmt.Errorf("%w: %w", errSpool, err)
	}
	f.files[name] = file
	n, err := io.Copy(spoolWriter{file}, io.LimitReader(part, limit+1))
	if err != nil {
		return err
	}
	return within(name, n, limit)
}

// errSpool marks a failure of our own disk, so that it is not taken for the
// client's.
var errSpool = errors.New("api: keeping an upload")

type spoolWriter struct{ w io.Writer }

func (s spoolWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		err = fmt.Errorf("%w: %w", errSpool, err)
	}
	return n, err
}

func within(name string, size, limit int64) error {
	if size > limit {
		return &problem{fiber.StatusRequestEntityTooLarge, fmt.Sprintf("%s is larger than %d bytes", name, limit)}
	}
	return nil
}

// formError tells a client's broken upload from our own failure.
func formError(err error) error {
	var p *problem
	switch {
	case errors.As(err, &p), errors.Is(err, errSpool):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSlowClient
	}
	return errBadForm
}

// body is the request's body with its limits: no more than BodyBytes in all, no
// pause longer than ReadPause, the time of the request, and the life of the
// server. It must be closed.
func (s *Server) body(c *fiber.Ctx) *bodyReader {
	var r io.Reader = c.Context().RequestBodyStream()
	if r == nil { // asking a streamed request for its Body would read it all into memory
		r = bytes.NewReader(c.Request().Body())
	}
	until, _ := deadline(c)
	b := &bodyReader{r: r, conn: c.Context().Conn(), left: s.options.BodyBytes, pause: s.options.ReadPause, until: until, server: s.base}
	// A read that waits for the client learns of the end by its deadline.
	b.release = context.AfterFunc(s.base, func() {
		if b.conn != nil {
			_ = b.conn.SetReadDeadline(time.Now())
		}
	})
	return b
}

type bodyReader struct {
	r     io.Reader
	conn  net.Conn
	left  int64
	pause time.Duration
	until time.Time // zero for no end
	// server ends with the server; release lets go of it.
	server  context.Context
	release func() bool
}

// Close lets go of the body without reading on.
func (b *bodyReader) Close() { b.release() }

func (b *bodyReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errUploadTooLong
	}
	now := time.Now()
	if !b.until.IsZero() && !now.Before(b.until) {
		return 0, errSlowUpload
	}
	if b.conn != nil {
		deadline := now.Add(b.pause)
		if !b.until.IsZero() && b.until.Before(deadline) {
			deadline = b.until
		}
		if err := b.conn.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
	}
	// The server may have ended before the deadline was set anew, or while the
	// client was waited for.
	if b.server.Err() != nil {
		return 0, errShuttingDown
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case err == nil || errors.Is(err, io.EOF):
	case b.server.Err() != nil:
		err = errShuttingDown
	case errors.Is(err, os.ErrDeadlineExceeded) && !b.until.IsZero() && !time.Now().Before(b.until):
		err = errSlowUpload
	}
	return n, err
}

// refuse passes an error on after reading some of what the client is still
// sending: closing at once would reset the connection, and the client would see
// that instead of the answer. It reads for one ReadPause at most: who is refused
// may be anybody, and a byte now and then would keep the connection for hours.
func (s *Server) refuse(c *fiber.Ctx, body *bodyReader, err error) error {
	body.left = max(body.left, 0) + s.options.DrainBytes
	if until := time.Now().Add(s.options.ReadPause); body.until.IsZero() || until.Before(body.until) {
		body.until = until
	}
	if n, copyErr := io.Copy(io.Discard, io.LimitReader(body, s.options.DrainBytes)); copyErr != nil || n >= s.options.DrainBytes {
		c.Context().SetConnectionClose()
	}
	return err
}

// refuseUnread is refuse for a request of which nothing was read.
func (s *Server) refuseUnread(c *fiber.Ctx, err error) error {
	body := s.body(c)
	defer body.Close()
	return s.refuse(c, body, err)
}

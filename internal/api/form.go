package api

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"sync"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/gofiber/fiber/v2"
)

// maxParts bounds the number of parts of a form, unknown ones included.
const maxParts = 100

// field defines how the parts of one name are read.
type field struct {
	// maxBytes is the maximum size of a part.
	maxBytes int64
	// spool stores the part in a temporary file instead of memory.
	spool bool
	// hash computes the part's SHA-256 while it is received.
	hash bool
	// known returns a matcher of files that need not be hashed and copied again; nil
	// for none.
	known func() *inference.UploadMatcher
	// maxTotal is the maximum size of all parts of the name together, all of which are
	// read. If it is 0, only the first part is.
	maxTotal int64
}

// upload is one of several parts of the same name.
type upload struct {
	file string // the file name that the client sent; may be empty
	data []byte
}

// form is a multipart form that was read. It must be closed.
type form struct {
	memory map[string][]byte   // parts in memory, by name
	files  map[string]*os.File // spooled parts, by name
	lists  map[string][]upload // parts of fields with maxTotal, by name
	hashes map[string]string   // SHA-256 in hexadecimal, by name
	// pooled holds the buffers of memory, by name. Close returns those of reusable to
	// bufferPool.
	pooled   map[string]*bytes.Buffer
	reusable []string
	// remaining is how much of the body is left according to Content-Length. The client
	// chooses it, so that it is only a hint for allocations.
	remaining   int64
	reservation *reservation
	// checkDisk, if not nil, may refuse n more bytes of spooled parts.
	checkDisk func(n int) error
}

func newForm(length int64, r *reservation) *form {
	return &form{memory: map[string][]byte{}, files: map[string]*os.File{}, lists: map[string][]upload{},
		hashes: map[string]string{}, pooled: map[string]*bytes.Buffer{}, remaining: length, reservation: r}
}

// Close removes the temporary files and returns reusable buffers to the pool.
func (f *form) Close() {
	for _, file := range f.files {
		file.Close()
		os.Remove(file.Name())
	}
	for _, name := range f.reusable {
		if b := f.pooled[name]; b != nil && b.Cap() <= maxPrealloc {
			b.Reset()
			bufferPool.Put(b)
		}
	}
}

// text returns a part as text without surrounding white space. It returns "" for a part
// that was not sent.
func (f *form) text(name string) string { return string(bytes.TrimSpace(f.memory[name])) }

// openZip opens a spooled part as a zip of images.
func (f *form) openZip(name string, lim dataset.Limits) (*dataset.Source, error) {
	file := f.files[name]
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return dataset.OpenZip(file, info.Size(), lim)
}

// markReusable lets Close reuse the memory of a part. The part's bytes must not be
// used after Close.
func (f *form) markReusable(name string) { f.reusable = append(f.reusable, name) }

// bufferPool holds buffers of parts that are not used any more. Without it, each upload
// of the same model would leave several megabytes of garbage.
var bufferPool = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// pooledBuffer returns an empty buffer with a capacity of at least size bytes. It rounds
// the size up, so that a buffer fits uploads that differ by the size of an image.
func pooledBuffer(size int64) *bytes.Buffer {
	const granularity = 256 << 10
	want := (int(max(size, 0)) + bytes.MinRead + granularity - 1) / granularity * granularity
	if b := bufferPool.Get().(*bytes.Buffer); b.Cap() >= want {
		return b
	}
	return bytes.NewBuffer(make([]byte, 0, want))
}

const (
	// readAhead is the size of the reads from a body, in bytes.
	readAhead = 256 << 10
	// maxPrealloc bounds the memory that is allocated for a part before its bytes
	// arrive.
	maxPrealloc = 8 << 20
	// maxImagePrealloc is maxPrealloc for one of several parts of a name. With the
	// larger bound, a form of a hundred small parts would take a hundred times its
	// length.
	maxImagePrealloc = 64 << 10
)

// readerPool holds the buffered readers of bodies.
var readerPool = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readAhead) }}

// receiveForm reads the form of a request for work, and returns it with the timer of
// the request's stages. It returns errShuttingDown, without reading, while the server
// shuts down. The caller must close the form.
func (s *Server) receiveForm(c *fiber.Ctx, work string, fields map[string]field) (*form, *stageTimer, error) {
	if s.draining.Load() {
		return nil, nil, errShuttingDown
	}
	f, err := s.readForm(c, fields)
	if err != nil {
		return nil, nil, err
	}
	timer := s.metrics.timer(work, receivedAt(c))
	timer.done(stageReceive)
	return f, timer, nil
}

// readForm reads a multipart body as a stream. It skips parts that are not in fields.
// Parts may be in any order, with or without a file name and a content type. A URL-encoded
// form and an empty body are forms without parts: the caller knows which file is missing.
func (s *Server) readForm(c *fiber.Ctx, fields map[string]field) (*form, error) {
	if err := rejectQuery(c, fields); err != nil {
		return nil, s.rejectUnread(c, err)
	}
	body := s.body(c)
	defer body.Close()
	f := newForm(int64(c.Request().Header.ContentLength()), reservationOf(c))
	// The multipart reader alone would read 4 KiB at a time.
	buffered := readerPool.Get().(*bufio.Reader)
	buffered.Reset(&stickyErrorReader{Reader: body})
	defer func() {
		buffered.Reset(nil) // do not keep the connection in the pool
		readerPool.Put(buffered)
	}()
	kind, params, err := mime.ParseMediaType(c.Get(fiber.HeaderContentType))
	_, empty := buffered.Peek(1)
	switch {
	case errors.Is(empty, io.EOF):
		return f, nil
	case kind == fiber.MIMEApplicationForm: // this encoding has no files
		return f, s.reject(c, body, nil)
	case err != nil || kind != fiber.MIMEMultipartForm:
		return nil, s.reject(c, body, errNotMultipart)
	case params["boundary"] == "":
		return nil, s.reject(c, body, errBadForm)
	}
	if s.spoolsBesideJobs {
		f.checkDisk = s.checkDisk
	}
	rest := f.matchFirstPart(buffered, params["boundary"], fields)
	if err := f.read(multipart.NewReader(rest, params["boundary"]), fields, s.options.TempDir); err != nil {
		f.Close()
		return nil, s.reject(c, body, formError(err))
	}
	// Bytes after the last boundary must be read before the connection's next request.
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		f.Close()
		return nil, s.reject(c, body, formError(err))
	}
	return f, nil
}

// read reads the parts of a form.
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
			err = f.spoolPart(name, part, known.maxBytes, tempDir)
		case known.maxTotal > 0:
			err = f.appendPart(name, part, known)
		default:
			err = f.readPart(name, part, known)
		}
		if err != nil {
			return err
		}
	}
	return badRequest(fmt.Sprintf("The form has more than %d parts", maxParts))
}

// readPart reads a part into memory.
func (f *form) readPart(name string, part io.Reader, known field) error {
	r := io.LimitReader(part, known.maxBytes+1)
	if known.known != nil {
		again, err := f.matchPart(name, r, known.known())
		if again == nil {
			return err
		}
		r = again
	}
	expected := min(f.remaining, known.maxBytes)
	data := pooledBuffer(min(expected, maxPrealloc))
	r = reservingReader{r, f.reservation}
	sum := sha256.New()
	if known.hash {
		r = io.TeeReader(r, sum)
	}
	data, err := readExpecting(data, r, expected)
	f.remaining -= int64(data.Len())
	f.memory[name], f.pooled[name] = data.Bytes(), data
	if err != nil {
		return err
	}
	if known.hash {
		f.hashes[name] = hex.EncodeToString(sum.Sum(nil))
	}
	return checkSize(name, int64(data.Len()), known.maxBytes)
}

// readExpecting reads all of r into an empty buffer, or into a larger one, which it returns.
// The capacity grows to the expected number of bytes, but at most fourfold at once: the rest
// of a body that a client announces need not arrive. bytes.Buffer would double it, and half
// of the memory of large models would be unused.
func readExpecting(b *bytes.Buffer, r io.Reader, expected int64) (*bytes.Buffer, error) {
	data := b.AvailableBuffer()
	for {
		if len(data) == cap(data) {
			size := max(2*cap(data), bytes.MinRead)
			if want := int(expected) + bytes.MinRead; want > cap(data) {
				size = min(want, 2*size)
			}
			data = append(make([]byte, 0, size), data...)
		}
		n, err := r.Read(data[len(data):cap(data)])
		if data = data[:len(data)+n]; err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return bytes.NewBuffer(data), err
	}
}

// appendPart reads one of several parts of a name into memory.
func (f *form) appendPart(name string, part *multipart.Part, known field) error {
	before := int64(0)
	for _, u := range f.lists[name] {
		before += int64(len(u.data))
	}
	limit := min(known.maxBytes, known.maxTotal-before)
	// The last image is most of what remains of a body.
	buffer := bytes.NewBuffer(make([]byte, 0, max(min(f.remaining, limit, maxImagePrealloc), 0)+bytes.MinRead))
	if _, err := buffer.ReadFrom(reservingReader{io.LimitReader(part, limit+1), f.reservation}); err != nil {
		return err
	}
	data := buffer.Bytes()
	if len(data) == 0 && part.FileName() == "" { // see spoolPart
		return nil
	}
	f.remaining -= int64(len(data))
	f.lists[name] = append(f.lists[name], upload{part.FileName(), data})
	if err := checkSize(name, int64(len(data)), known.maxBytes); err != nil {
		return err
	}
	return checkSize("All of "+name, before+int64(len(data)), known.maxTotal)
}

// spoolPart writes a part to a temporary file. An empty part without a file name counts as
// missing: a browser sends it if no file was chosen.
func (f *form) spoolPart(name string, part *multipart.Part, maxBytes int64, tempDir string) error {
	file, err := os.CreateTemp(tempDir, "upload-*")
	if err != nil {
		return fmt.Errorf("%w: %w", errSpool, err)
	}
	f.files[name] = file
	n, err := io.Copy(&spoolWriter{w: file, check: f.checkDisk}, io.LimitReader(part, maxBytes+1))
	if err != nil {
		return err
	}
	if n == 0 && part.FileName() == "" {
		delete(f.files, name)
		return errors.Join(file.Close(), os.Remove(file.Name()))
	}
	return checkSize(name, n, maxBytes)
}

// rejectQuery returns a 400 problem if the request's URL has a field of the form as a
// query parameter. Each field has one place: values from two would need a rule about which
// counts, and proxies log URLs. Other parameters are ignored, like unknown parts.
func rejectQuery(c *fiber.Ctx, fields map[string]field) error {
	for key := range c.Context().QueryArgs().All() {
		if _, known := fields[string(key)]; known {
			return badRequest(fmt.Sprintf("The field %s was sent in the URL: send it as a part of the multipart form", key))
		}
	}
	return nil
}

// errSpool wraps failures of the service's disk, which are not the client's.
var errSpool = errors.New("api: cannot store an upload")

// spoolWriter writes to a temporary file. It wraps errors of the file in errSpool.
type spoolWriter struct {
	w io.Writer
	// check, if not nil, is called before each spoolChunk bytes and may refuse them.
	check func(n int) error
	room  int // bytes that may be written before the next check
}

// spoolChunk is the number of bytes of an upload between two checks of the disk.
const spoolChunk = 1 << 20

func (s *spoolWriter) Write(p []byte) (int, error) {
	if s.check != nil && s.room < len(p) {
		if err := s.check(len(p) + spoolChunk); err != nil {
			return 0, err
		}
		s.room = len(p) + spoolChunk
	}
	n, err := s.w.Write(p)
	s.room -= n
	if err != nil {
		err = fmt.Errorf("%w: %w", errSpool, err)
	}
	return n, err
}

// formError returns the client's problem for an error of reading a form. It returns an
// error of the service itself as it is.
func formError(err error) error {
	var p *problem
	switch {
	case errors.As(err, &p), errors.Is(err, errSpool), errors.Is(err, jobs.ErrCancelled):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSlowClient
	}
	return errBadForm
}

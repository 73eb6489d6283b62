package inference

import "bytes"

// UploadMatcher finds out, while a model file is uploaded, whether a model in the
// cache was read from the same file. Comparing bytes takes a fifth of the time of
// hashing them, and a known file needs no second copy in memory. An UploadMatcher
// must be used by one goroutine only.
type UploadMatcher struct {
	files []knownFile // the files that start with the matched bytes
	seen  []byte      // the matched bytes, a prefix of one of the files
}

type knownFile struct {
	sha256 string
	data   []byte
}

// Remember retains the model's file for UploadMatcher. Bytes includes it. The caller
// must not change the bytes afterwards.
func (d *Detector) Remember(file []byte) { d.file.Store(&file) }

// Remembers reports whether the model's file is retained.
func (d *Detector) Remembers() bool { return d.file.Load() != nil }

// fileBytes returns the size of the retained file.
func (d *Detector) fileBytes() int64 {
	if f := d.file.Load(); f != nil {
		return int64(cap(*f))
	}
	return 0
}

// UploadMatcher returns a matcher for the files that the cached models retain at the
// time of the call.
func (c *Cache) UploadMatcher() *UploadMatcher {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &UploadMatcher{}
	for _, e := range c.entries.Values() {
		if f := e.detector.file.Load(); f != nil {
			m.files = append(m.files, knownFile{e.key, *f})
		}
	}
	return m
}

// Next matches the next bytes of the upload and returns how many of them continue a
// known file: fewer than len(p) if the file ends before, 0 if no file matches. Next
// must not be called again after it returned fewer than len(p).
func (m *UploadMatcher) Next(p []byte) int {
	from, most := len(m.seen), 0
	kept := m.files[:0]
	for _, f := range m.files {
		n := min(len(f.data)-from, len(p))
		if n < most || !bytes.Equal(f.data[from:from+n], p[:n]) {
			continue
		}
		if n > most {
			most, kept = n, kept[:0] // the files kept so far are shorter
		}
		kept = append(kept, f)
	}
	if m.files = kept; most > 0 {
		m.seen = kept[0].data[:from+most]
	}
	return most
}

// Seen returns the matched bytes. They are part of a retained file: the caller must
// not change them.
func (m *UploadMatcher) Seen() []byte { return m.seen[:len(m.seen):len(m.seen)] }

// Whole returns the SHA-256 of the file that equals the matched bytes. ok is false if
// there is none.
func (m *UploadMatcher) Whole() (sha256 string, ok bool) {
	for _, f := range m.files {
		if len(f.data) == len(m.seen) {
			return f.sha256, true
		}
	}
	return "", false
}

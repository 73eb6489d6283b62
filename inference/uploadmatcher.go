package inference

import "bytes"

// UploadMatcher tells whether the bytes that come in are the file of a model in the
// cache: comparing them costs a fifth of hashing them, and a file that is there
// already need not be kept a second time. It is for one goroutine.
type UploadMatcher struct {
	files []knownFile // those that go on as the bytes so far
	seen  []byte      // the bytes so far, in one of them
}

type knownFile struct {
	sha256 string
	data   []byte
}

// Remember keeps the file that the detector's model was read from, for a
// UploadMatcher. It is counted by Bytes. The bytes must not change any more.
func (d *Detector) Remember(file []byte) { d.file.Store(&file) }

// Remembers says whether the file is kept.
func (d *Detector) Remembers() bool { return d.file.Load() != nil }

// fileBytes is what the kept file takes.
func (d *Detector) fileBytes() int64 {
	if f := d.file.Load(); f != nil {
		return int64(cap(*f))
	}
	return 0
}

// UploadMatcher begins with the files that the cache's models keep at the moment.
func (c *Cache) UploadMatcher() *UploadMatcher {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &UploadMatcher{}
	for _, e := range c.entries.Values() {
		if f := e.detector.file.Load(); f != nil {
			r.files = append(r.files, knownFile{e.key, *f})
		}
	}
	return r
}

// Next takes the bytes that come next, and says with how many of them a known file
// goes on: fewer than all where it ends within them, none where they differ from
// each. After it took fewer than all, it must not be called again.
func (r *UploadMatcher) Next(p []byte) int {
	from, most := len(r.seen), 0
	kept := r.files[:0]
	for _, f := range r.files {
		n := min(len(f.data)-from, len(p))
		if n < most || !bytes.Equal(f.data[from:from+n], p[:n]) {
			continue
		}
		if n > most {
			most, kept = n, kept[:0] // what ended before is another
		}
		kept = append(kept, f)
	}
	if r.files = kept; most > 0 {
		r.seen = kept[0].data[:from+most]
	}
	return most
}

// Seen are the bytes that Next took. They are the file's own and must not be written to.
func (r *UploadMatcher) Seen() []byte { return r.seen[:len(r.seen):len(r.seen)] }

// Whole says which file it was, by its SHA-256, when the bytes so far are the
// whole of one.
func (r *UploadMatcher) Whole() (sha256 string, ok bool) {
	for _, f := range r.files {
		if len(f.data) == len(r.seen) {
			return f.sha256, true
		}
	}
	return "", false
}

package broker

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Tidy removes the files that keep rejects, and the chunks of files that were not written
// completely. No other process may write to the store meanwhile; for a cluster there is
// Tidier. It returns the number of removed subjects.
func (s *Files) Tidy(ctx context.Context, keep func(name string) bool) (removed int, err error) {
	unused, err := s.unused(ctx, keep)
	for subject := range unused {
		if err != nil {
			break
		}
		removed++
		err = s.purge(ctx, subject)
	}
	return removed, err
}

// unused returns the subjects of files that keep rejects, and of chunks without a
// description, with the number of their messages.
func (s *Files) unused(ctx context.Context, keep func(name string) bool) (map[string]uint64, error) {
	subjects, _, err := s.b.Subjects(ctx, s.stream, ">")
	if err != nil {
		return nil, err
	}
	unused, described := map[string]uint64{}, map[string]bool{} // subjects of chunks
	for subject, n := range subjects {
		if !strings.HasPrefix(subject, s.metaSubject("")) {
			continue
		}
		if name, ok := s.nameOf(subject); !ok || !keep(name) {
			unused[subject] = n
			continue
		}
		info, err := s.info(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		described[s.chunkSubject(info.NUID)] = true
	}
	for subject, n := range subjects {
		if strings.HasPrefix(subject, s.chunkSubject("")) && !described[subject] {
			unused[subject] = n
		}
	}
	return unused, nil
}

// Tidier removes unused files of a store that several processes write to. A file that is
// being written looks unused; a Tidier removes only what was unused and did not grow for an
// age.
type Tidier struct {
	files *Files
	age   time.Duration
	seen  map[string]unusedSince
}

type unusedSince struct {
	messages uint64
	since    time.Time
}

// Tidier returns a Tidier. The age must be longer than any file is written without a chunk,
// and than the time from a file to what makes keep accept it.
func (s *Files) Tidier(age time.Duration) *Tidier {
	return &Tidier{files: s, age: age, seen: map[string]unusedSince{}}
}

// Tidy removes what has been unused since calls before, for the age. It returns the number of
// removed subjects.
func (t *Tidier) Tidy(ctx context.Context, keep func(name string) bool) (removed int, err error) {
	unused, err := t.files.unused(ctx, keep)
	if err != nil {
		return 0, err
	}
	for subject := range t.seen {
		if _, still := unused[subject]; !still {
			delete(t.seen, subject)
		}
	}
	now := time.Now()
	for subject, n := range unused {
		if u, ok := t.seen[subject]; !ok || u.messages != n {
			t.seen[subject] = unusedSince{n, now}
			continue
		}
		if now.Sub(t.seen[subject].since) < t.age {
			continue
		}
		removed++
		if err := t.files.purge(ctx, subject); err != nil {
			return removed, err
		}
		delete(t.seen, subject)
	}
	return removed, nil
}

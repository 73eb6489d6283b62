package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// File is a file of a request.
type File struct {
	Name  string
	Bytes int64 // its size
	io.Reader
}

// chunkBytes is the size of the messages that a file is stored in.
const chunkBytes = 512 << 10

// ContentMemory is an estimate of the memory of a Content that is read, in bytes: a chunk,
// and the message that it is in.
const ContentMemory = 2 * chunkBytes

// bucket is the name of the object store and of the key-value store.
const bucket = "jobs"

// Subjects of a file in an object store: its chunks, by a random id, and its
// description, by its name in base64.
const (
	chunkPrefix = "$O." + bucket + ".C."
	metaPrefix  = "$O." + bucket + ".M."
)

// errDamaged is returned for a stored file whose bytes are not those that were
// written.
var errDamaged = errors.New("jobs: a stored file is damaged")

// fileStore stores files in the format of a JetStream object store. The client
// library's own methods are not used: its Put has up to 4,000 chunks under way, so
// that a file would be in memory, and its Get starts a consumer for each reader.
type fileStore struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

const (
	// storeTimeout bounds an operation of the store, most of which wait for the disk. A
	// store whose disk was full does not answer.
	storeTimeout = 20 * time.Second
	// purgeTimeout bounds the removal of a file: all blocks of the store are read for it.
	purgeTimeout = 5 * time.Minute
)

// withTimeout bounds an operation of the store.
func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, storeTimeout)
}

// put stores a file and returns its size and its SHA-256 in hexadecimal. The file is
// durable when put returns. On an error nothing is stored.
func (s *fileStore) put(ctx context.Context, name string, r io.Reader) (size int64, sum string, err error) {
	id := nuid.Next()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.purge(context.WithoutCancel(ctx), chunkPrefix+id))
		}
	}()
	digest, chunks := sha256.New(), uint32(0)
	for buffer, end := make([]byte, chunkBytes), false; !end; {
		n, err := io.ReadFull(r, buffer)
		if end = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !end {
			return 0, "", err
		}
		if n == 0 {
			break
		}
		digest.Write(buffer[:n])
		// Publish waits until the chunk is on the disk, so that one is in memory.
		if err := s.publish(ctx, &nats.Msg{Subject: chunkPrefix + id, Data: buffer[:n]}); err != nil {
			return 0, "", err
		}
		size += int64(n)
		chunks++
	}
	info := jetstream.ObjectInfo{Bucket: bucket, NUID: id, Size: uint64(size), Chunks: chunks, Digest: jetstream.GetObjectDigestValue(digest),
		ObjectMeta: jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: chunkBytes}}}
	data, err := json.Marshal(info)
	if err != nil {
		return 0, "", err
	}
	m := &nats.Msg{Subject: metaSubject(name), Data: data, Header: nats.Header{jetstream.MsgRollup: {jetstream.MsgRollupSubject}}}
	if err := s.publish(ctx, m); err != nil {
		return 0, "", err
	}
	return size, hex.EncodeToString(digest.Sum(nil)), nil
}

func (s *fileStore) publish(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	_, err := s.js.PublishMsg(ctx, m)
	return err
}

func metaSubject(name string) string {
	return metaPrefix + base64.URLEncoding.EncodeToString([]byte(name))
}

// info returns the description of a file. It returns jetstream.ErrMsgNotFound if there
// is none.
func (s *fileStore) info(ctx context.Context, subject string) (info jetstream.ObjectInfo, err error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	m, err := s.stream.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(m.Data, &info)
}

// Content reads a stored file. Read returns an error at the end if the bytes are not
// those that were written. It holds no resources.
type Content struct {
	// Bytes is the size of the file.
	Bytes int64

	ctx      context.Context
	store    *fileStore
	info     jetstream.ObjectInfo
	digest   hash.Hash
	chunk    bytes.Reader
	read     int64
	sequence uint64 // of the last chunk
}

// open returns a reader of a file, which is usable until ctx ends.
func (s *fileStore) open(ctx context.Context, name string) (*Content, error) {
	info, err := s.info(ctx, metaSubject(name))
	if err != nil {
		return nil, fmt.Errorf("jobs: %s: %w", name, err)
	}
	return &Content{Bytes: int64(info.Size), ctx: ctx, store: s, info: info, digest: sha256.New()}, nil
}

func (c *Content) Read(p []byte) (int, error) {
	for c.chunk.Len() == 0 {
		if c.read == c.Bytes {
			if jetstream.GetObjectDigestValue(c.digest) != c.info.Digest {
				return 0, errDamaged
			}
			return 0, io.EOF
		}
		ctx, cancel := withTimeout(c.ctx)
		m, err := c.store.stream.GetMsg(ctx, c.sequence+1, jetstream.WithGetMsgSubject(chunkPrefix+c.info.NUID))
		cancel()
		if err != nil {
			if cause := context.Cause(c.ctx); cause != nil {
				err = cause
			}
			return 0, fmt.Errorf("jobs: %s: %w", c.info.Name, err)
		}
		c.sequence = m.Sequence
		if c.read += int64(len(m.Data)); c.read > c.Bytes || len(m.Data) == 0 {
			return 0, errDamaged
		}
		c.digest.Write(m.Data)
		c.chunk.Reset(m.Data)
	}
	return c.chunk.Read(p)
}

// remove removes a file. It returns nil if there is none.
func (s *fileStore) remove(ctx context.Context, name string) error {
	info, err := s.info(ctx, metaSubject(name))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// Chunks without a description are removed at the next start.
	return errors.Join(s.purge(ctx, metaSubject(name)), s.purge(ctx, chunkPrefix+info.NUID))
}

// purge removes the messages of a subject.
func (s *fileStore) purge(ctx context.Context, subject string) error {
	ctx, cancel := context.WithTimeout(ctx, purgeTimeout)
	defer cancel()
	return s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
}

// tidy removes the files that keep rejects, and the chunks of files that were not
// written completely. It returns the number of removed subjects.
func (s *fileStore) tidy(ctx context.Context, keep func(name string) bool) (removed int, err error) {
	subjects, err := subjectsOf(ctx, s.stream)
	if err != nil {
		return 0, err
	}
	described := map[string]bool{} // subjects of chunks
	for subject := range subjects {
		encoded, isMeta := strings.CutPrefix(subject, metaPrefix)
		if !isMeta {
			continue
		}
		name, err := base64.URLEncoding.DecodeString(encoded)
		if err == nil && keep(string(name)) {
			info, err := s.info(ctx, subject)
			if err != nil {
				return removed, err
			}
			described[chunkPrefix+info.NUID] = true
			continue
		}
		removed++
		if err := s.purge(ctx, subject); err != nil {
			return removed, err
		}
	}
	for subject := range subjects {
		if strings.HasPrefix(subject, chunkPrefix) && !described[subject] {
			removed++
			if err := s.purge(ctx, subject); err != nil {
				return removed, err
			}
		}
	}
	return removed, nil
}

// subjectsOf returns the subjects of the messages in a stream.
func subjectsOf(ctx context.Context, s jetstream.Stream) (map[string]uint64, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return nil, err
	}
	return info.State.Subjects, nil
}

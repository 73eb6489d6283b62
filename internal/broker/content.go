package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/nats-io/nats.go/jetstream"
)

// Content reads a stored file. Read returns an error at the end if the bytes are not
// those that were written. It holds no resources.
type Content struct {
	// Bytes is the size of the file.
	Bytes int64

	ctx      context.Context
	store    *Files
	info     jetstream.ObjectInfo
	digest   hash.Hash
	chunk    bytes.Reader
	read     int64
	sequence uint64 // of the last chunk
}

// Open returns a reader of a file, which is usable until ctx ends. It returns ErrNotFound,
// wrapped, if there is no such file.
func (s *Files) Open(ctx context.Context, name string) (*Content, error) {
	info, err := s.info(ctx, s.metaSubject(name))
	if err != nil {
		return nil, s.named(name, err)
	}
	return &Content{Bytes: int64(info.Size), ctx: ctx, store: s, info: info, digest: sha256.New()}, nil
}

// OpenStored is Open for a file that was stored, perhaps a moment ago by another process. It
// asks again for some seconds before it returns ErrNotFound; see RetryMissing.
func (s *Files) OpenStored(ctx context.Context, name string) (c *Content, err error) {
	err = s.b.RetryMissing(ctx, ErrNotFound, func() error {
		c, err = s.Open(ctx, name)
		return err
	})
	return c, err
}

func (c *Content) Read(p []byte) (int, error) {
	for c.chunk.Len() == 0 {
		if c.read == c.Bytes {
			if jetstream.GetObjectDigestValue(c.digest) != c.info.Digest {
				return 0, ErrDamaged
			}
			return 0, io.EOF
		}
		var data []byte
		var sequence uint64
		err := c.store.b.RetryMissing(c.ctx, jetstream.ErrMsgNotFound, func() (err error) {
			data, sequence, err = c.next()
			return err
		})
		if err != nil {
			if cause := context.Cause(c.ctx); cause != nil {
				err = cause
			}
			return 0, c.store.named(c.info.Name, err)
		}
		c.sequence = sequence
		if c.read += int64(len(data)); c.read > c.Bytes || len(data) == 0 {
			return 0, fmt.Errorf("%s: %w", c.info.Name, ErrDamaged)
		}
		c.digest.Write(data)
		c.chunk.Reset(data)
	}
	return c.chunk.Read(p)
}

// next returns the next chunk with its sequence. Any server may answer; one that is behind has
// not the chunk yet, so that the leader is asked then.
func (c *Content) next() (data []byte, sequence uint64, err error) {
	b, subject := c.store.b, c.store.chunkSubject(c.info.NUID)
	err = b.Retry(c.ctx, func(ctx context.Context) error {
		m, err := c.store.stream.GetMsg(ctx, c.sequence+1, jetstream.WithGetMsgSubject(subject))
		if err == nil {
			data, sequence = m.Data, m.Sequence
			return nil
		}
		if b.Embedded() || !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
		stored, err := b.leaderMessage(ctx, "OBJ_"+c.store.bucket, map[string]any{"seq": c.sequence + 1, "next_by_subj": subject})
		if err == nil {
			data, sequence = stored.Data, stored.Sequence
		}
		return err
	})
	return data, sequence, err
}

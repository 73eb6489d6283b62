package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// chunkBytes is the size of the messages that a file is stored in. In a message of the API, a
// third larger, it must fit into 1 MiB, the default of NATS servers.
const chunkBytes = 512 << 10

// ContentMemory is an estimate of the memory of a Content that is read, in bytes: a chunk,
// and the message that it is in.
const ContentMemory = 2 * chunkBytes

// purgeTimeout bounds the removal of a file: all blocks of the store are read for it.
const purgeTimeout = 5 * time.Minute

// ErrNotFound is returned, wrapped, when there is no file with the name.
var ErrNotFound = errors.New("there is no such file in the store")

// ErrDamaged is returned for a stored file whose bytes are not those that were written.
var ErrDamaged = errors.New("a stored file is damaged")

// Files stores files in the format of a JetStream object store. The client library's own
// methods are not used: its Put has up to 4,000 chunks under way, so that a file would be in
// memory, and its Get starts a consumer for each reader.
type Files struct {
	b      *Broker
	bucket string
	stream jetstream.Stream
}

// Files creates or opens an object store.
func (b *Broker) Files(ctx context.Context, bucket string) (*Files, error) {
	f := &Files{b: b, bucket: bucket}
	err := b.RetryFor(ctx, startTimeout, func(ctx context.Context) (err error) {
		c := jetstream.ObjectStoreConfig{Bucket: bucket, Storage: jetstream.FileStorage, Replicas: b.o.Replicas}
		if _, err = b.JetStream.CreateOrUpdateObjectStore(ctx, c); err != nil {
			return err
		}
		f.stream, err = b.JetStream.Stream(ctx, "OBJ_"+bucket)
		return err
	})
	return f, err
}

// Subjects of a file: its chunks, by a random id, and its description, by its name in base64.
func (s *Files) chunkSubject(id string) string { return "$O." + s.bucket + ".C." + id }

func (s *Files) metaSubject(name string) string {
	return "$O." + s.bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

// Put stores a file and returns its size and its SHA-256 in hexadecimal. The file is
// durable when Put returns. It replaces a file of that name, whose readers then fail. On an
// error nothing is stored, unless the error is ErrUnavailable: then the file may be there.
func (s *Files) Put(ctx context.Context, name string, r io.Reader) (size int64, sum string, err error) {
	id := nuid.Next()
	replaced := ""
	if old, err := s.info(ctx, s.metaSubject(name)); err == nil {
		replaced = old.NUID
	} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, "", err
	}
	described := false // the description may be stored
	defer func() {
		if err != nil && !described {
			err = errors.Join(err, s.purgeSoon(ctx, s.chunkSubject(id)))
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
		if err := s.publish(ctx, s.chunkSubject(id), buffer[:n], id+"."+strconv.Itoa(int(chunks))); err != nil {
			return 0, "", err
		}
		size += int64(n)
		chunks++
	}
	info := jetstream.ObjectInfo{Bucket: s.bucket, NUID: id, Size: uint64(size), Chunks: chunks, Digest: jetstream.GetObjectDigestValue(digest),
		ObjectMeta: jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: chunkBytes}}}
	data, err := json.Marshal(info)
	if err != nil {
		return 0, "", err
	}
	if err := s.publish(ctx, s.metaSubject(name), data, id); err != nil {
		described = errors.Is(err, ErrUnavailable)
		return 0, "", err
	}
	if replaced != "" {
		if err := s.purge(context.WithoutCancel(ctx), s.chunkSubject(replaced)); err != nil && !errors.Is(err, ErrUnavailable) {
			return size, hex.EncodeToString(digest.Sum(nil)), err
		} // else Tidy removes them
	}
	return size, hex.EncodeToString(digest.Sum(nil)), nil
}

// publish stores a chunk or a description. The latter replaces earlier ones.
func (s *Files) publish(ctx context.Context, subject string, data []byte, id string) error {
	m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{}}
	if !s.b.Embedded() { // where it may be sent twice
		m.Header.Set(jetstream.MsgIDHeader, id)
	}
	if strings.HasPrefix(subject, s.metaSubject("")) {
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	}
	_, err := s.b.Publish(ctx, m)
	return err
}

// info returns the description of a file. It returns jetstream.ErrMsgNotFound if there is
// none.
func (s *Files) info(ctx context.Context, subject string) (info jetstream.ObjectInfo, err error) {
	err = s.b.Retry(ctx, func(ctx context.Context) error {
		if s.b.Embedded() {
			m, err := s.stream.GetLastMsgForSubject(ctx, subject)
			if err != nil {
				return err
			}
			return json.Unmarshal(m.Data, &info)
		}
		// Only the leader has what another process has just written.
		m, err := s.b.leaderMessage(ctx, "OBJ_"+s.bucket, map[string]any{"last_by_subj": subject})
		if err != nil {
			return err
		}
		return json.Unmarshal(m.Data, &info)
	})
	return info, err
}

// storedMessage is a message that the leader of a stream returned.
type storedMessage struct {
	Sequence uint64 `json:"seq"`
	Data     []byte `json:"data"`
}

// leaderMessage reads a message of a stream from its leader. It returns
// jetstream.ErrMsgNotFound if there is none.
func (b *Broker) leaderMessage(ctx context.Context, stream string, query map[string]any) (*storedMessage, error) {
	request, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	m, err := b.Conn.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, request)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *storedMessage      `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, err
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, jetstream.ErrMsgNotFound
	case answer.Error != nil:
		return nil, answer.Error
	case answer.Message == nil:
		return nil, jetstream.ErrMsgNotFound
	}
	return answer.Message, nil
}

// FileInfo describes a stored file.
type FileInfo struct {
	Name   string
	Bytes  int64
	SHA256 string // in hexadecimal
}

// Info returns the description of a file. It returns ErrNotFound, wrapped, if there is none.
func (s *Files) Info(ctx context.Context, name string) (FileInfo, error) {
	info, err := s.info(ctx, s.metaSubject(name))
	if err != nil {
		return FileInfo{}, s.named(name, err)
	}
	digest, err := jetstream.DecodeObjectDigest(info.Digest)
	if err != nil {
		return FileInfo{}, fmt.Errorf("%s: %w", name, ErrDamaged)
	}
	return FileInfo{Name: name, Bytes: int64(info.Size), SHA256: hex.EncodeToString(digest)}, nil
}

// named adds the name of a file to an error.
func (s *Files) named(name string, err error) error {
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("%s: %w: %w", name, ErrNotFound, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// List returns the names of the files whose names begin with a prefix.
func (s *Files) List(ctx context.Context, prefix string) ([]string, error) {
	subjects, _, err := s.b.Subjects(ctx, s.stream, s.metaSubject("")+"*")
	if err != nil {
		return nil, err
	}
	var names []string
	for subject := range subjects {
		if name, ok := s.nameOf(subject); ok && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, nil
}

// nameOf returns the name of the file that a subject describes.
func (s *Files) nameOf(subject string) (string, bool) {
	encoded, isMeta := strings.CutPrefix(subject, s.metaSubject(""))
	if !isMeta {
		return "", false
	}
	name, err := base64.URLEncoding.DecodeString(encoded)
	return string(name), err == nil
}

// Remove removes a file. It returns nil if there is none.
func (s *Files) Remove(ctx context.Context, name string) error {
	info, err := s.info(ctx, s.metaSubject(name))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// Chunks without a description are removed by Tidy.
	return errors.Join(s.purge(ctx, s.metaSubject(name)), s.purge(ctx, s.chunkSubject(info.NUID)))
}

// purge removes the messages of a subject.
func (s *Files) purge(ctx context.Context, subject string) error {
	limit := purgeTimeout
	return s.b.RetryFor(ctx, limit, func(ctx context.Context) error {
		// A purge goes on in the server when it is not waited for.
		return s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject))
	})
}

// purgeSoon is purge after a failure: servers that do not answer are not waited for long.
func (s *Files) purgeSoon(ctx context.Context, subject string) error {
	ctx = context.WithoutCancel(ctx)
	if s.b.Embedded() {
		return s.purge(ctx, subject)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	_ = s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject)) // else Tidy removes them
	return nil
}

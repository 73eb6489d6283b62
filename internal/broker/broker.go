package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options configure a Broker.
type Options struct {
	// URL has the addresses of the servers of a cluster, separated by commas; empty for a
	// server inside the process.
	URL string
	// Dir is the folder of the server inside the process, which Open creates.
	Dir string
	// Credentials, NKey, CA, Certificate and Key are paths of files, as NATS defines them:
	// a .creds file, the seed of an nkey, certificates and a private key in PEM. Empty
	// means none.
	Credentials, NKey, CA, Certificate, Key string
	// Replicas is the number of servers that store each message; 0 means 1.
	Replicas int
	// Name is the name of the connection in NATS's monitoring.
	Name string
	Log  *slog.Logger
}

// Broker is a connection to NATS. It may be used concurrently and must be closed.
type Broker struct {
	Conn      *nats.Conn
	JetStream jetstream.JetStream

	o      Options
	node   string
	lock   *os.File       // of Dir; nil with a cluster
	server *server.Server // nil with a cluster
}

const (
	// startTimeout is the longest time to recover a store at the start, or to reach a
	// cluster.
	startTimeout = 2 * time.Minute
	// connectTimeout is the longest time of one try to connect to a server.
	connectTimeout = 3 * time.Second
	// reconnectWait is the pause between two tries.
	reconnectWait = 250 * time.Millisecond
	// pingInterval is the time between two checks of a connection. A server that leaves
	// two without an answer is left for another.
	pingInterval = 2 * time.Second
)

// ErrInUse is returned by Open when another process has the folder open.
var ErrInUse = errors.New("another service keeps its jobs in this folder")

// Open starts a server in Options.Dir, or connects to a cluster. It waits up to two minutes
// for a cluster whose servers do not answer yet. It returns ErrInUse, wrapped, when another
// process has the folder open, and ErrUnavailable, wrapped, for a cluster that does not
// answer.
func Open(ctx context.Context, o Options) (b *Broker, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Replicas = max(o.Replicas, 1)
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	b = &Broker{o: o, node: hex.EncodeToString(id[:])}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
			b = nil
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if o.URL == "" {
		err = b.openFolder()
	} else {
		err = b.connect(ctx)
	}
	if err != nil {
		return b, err
	}
	b.JetStream, err = jetstream.New(b.Conn, jetstream.WithDefaultTimeout(time.Minute))
	if err != nil || b.Embedded() {
		return b, err
	}
	return b, b.until(ctx, func(ctx context.Context) error {
		_, err := b.JetStream.AccountInfo(ctx)
		return err
	})
}

// openFolder locks the folder and starts a server in it.
func (b *Broker) openFolder() (err error) {
	if err := os.MkdirAll(b.o.Dir, 0o700); err != nil {
		return err
	}
	if b.lock, err = os.Open(b.o.Dir); err != nil {
		return err
	}
	if err := files.TryLock(b.lock); err != nil {
		if errors.Is(err, files.ErrLocked) {
			err = fmt.Errorf("%w: %s", ErrInUse, b.o.Dir)
		}
		return err
	}
	b.server, b.Conn, err = startServer(b.o.Dir, b.o.Log)
	return err
}

// connect connects to a cluster.
func (b *Broker) connect(ctx context.Context) error {
	log := b.o.Log
	options := []nats.Option{
		nats.Name(b.o.Name + " " + b.node), nats.Timeout(connectTimeout), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2), nats.IgnoreAuthErrorAbort(),
		// Nothing is buffered while there is no connection: it would be sent long after its
		// sender has given up.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("the connection to NATS was lost", slog.Any("error", err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			log.Info("connected to NATS again", slog.String("server", c.ConnectedServerName()))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Debug("NATS reports an error", slog.Any("error", err))
		}),
	}
	if b.o.Credentials != "" {
		options = append(options, nats.UserCredentials(b.o.Credentials))
	}
	if b.o.NKey != "" {
		key, err := nats.NkeyOptionFromSeed(b.o.NKey)
		if err != nil {
			return fmt.Errorf("the nkey cannot be read: %w", err)
		}
		options = append(options, key)
	}
	if b.o.CA != "" {
		options = append(options, nats.RootCAs(b.o.CA))
	}
	if b.o.Certificate != "" || b.o.Key != "" {
		options = append(options, nats.ClientCert(b.o.Certificate, b.o.Key))
	}
	if !usableURL(b.o.URL) {
		return ErrURL
	}
	return b.until(ctx, func(context.Context) (err error) {
		b.Conn, err = nats.Connect(b.o.URL, options...)
		if err != nil && !unavailable(err) && !errors.Is(err, nats.ErrNoServers) {
			return &permanent{err}
		}
		return err
	})
}

// ErrURL is returned by Open for Options.URL that has something else than URLs. It does not repeat
// them: they may have a password.
var ErrURL = errors.New("the URL of the NATS servers cannot be read: expected nats://HOST:PORT, several separated by commas, with special characters of a password written as %XX")

// usableURL reports whether all addresses in a list are URLs, or hosts.
func usableURL(list string) bool {
	for address := range strings.SplitSeq(list, ",") {
		address = strings.TrimSpace(address)
		if !strings.Contains(address, "://") {
			address = "nats://" + address
		}
		if u, err := url.Parse(address); err != nil || u.Hostname() == "" {
			return false
		}
	}
	return true
}

// permanent is an error that another try cannot mend.
type permanent struct{ error }

func (p *permanent) Unwrap() error { return p.error }

// until repeats f until it succeeds, fails for good, or ctx ends.
func (b *Broker) until(ctx context.Context, f func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, tryTimeout)
		err := f(limited)
		cancel()
		var p *permanent
		if err == nil || errors.As(err, &p) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-time.After(reconnectWait):
		}
	}
}

// Embedded reports whether the server is inside the process.
func (b *Broker) Embedded() bool { return b.o.URL == "" }

// Dir returns the folder of the server inside the process.
func (b *Broker) Dir() string { return b.o.Dir }

// Node returns the random id of this process.
func (b *Broker) Node() string { return b.node }

// Replicas returns the number of servers that store each message.
func (b *Broker) Replicas() int { return b.o.Replicas }

// Space returns the free bytes of the disk of the server inside the process. The disks of a
// cluster are not known: their servers reject what does not fit (IsNoSpace).
func (b *Broker) Space() (int64, error) {
	if !b.Embedded() {
		return math.MaxInt64 / 2, nil
	}
	return files.FreeSpace(b.o.Dir)
}

// Server returns the server inside the process, or nil. It is for tests.
func (b *Broker) Server() *server.Server { return b.server }

// Close closes the connection, stops the server inside the process, and releases its folder.
func (b *Broker) Close() error {
	if b.Conn != nil {
		b.Conn.Close()
	}
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}
	if b.lock != nil {
		return b.lock.Close()
	}
	return nil
}

package brokertest

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats-server/v2/server"
)

// Server is a NATS server with JetStream inside the test's process, which listens on
// 127.0.0.1.
type Server struct {
	t    testing.TB
	dir  string
	port int
	s    *server.Server
}

// InProcess starts a server that ends with the test.
func InProcess(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), port: -1}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start starts the server again after Stop, at the same address with the same store.
func (s *Server) Start() {
	s.t.Helper()
	var err error
	s.s, err = server.NewServer(&server.Options{
		ServerName: "test", Host: "127.0.0.1", Port: s.port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: s.dir,
		DisableJetStreamBanner: true, JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 64 << 20,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	go s.s.Start()
	if !s.s.ReadyForConnections(20 * time.Second) {
		s.t.Fatal("the NATS server does not start")
	}
	s.port = s.s.Addr().(*net.TCPAddr).Port
}

// Stop stops the server.
func (s *Server) Stop() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// URL returns the address of the server.
func (s *Server) URL() string { return "nats://127.0.0.1:" + strconv.Itoa(s.port) }

// Open returns a connection to a server at a URL, as another process of the cluster has one. It
// is closed with the test.
func Open(t testing.TB, url string, log *slog.Logger) *broker.Broker {
	t.Helper()
	b, err := broker.Open(context.Background(), broker.Options{URL: url, Name: t.Name(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

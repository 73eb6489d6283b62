package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startServer starts a NATS server without a socket, whose streams are in dir, and
// connects to it.
func startServer(dir string, log *slog.Logger) (*server.Server, *nats.Conn, error) {
	l := &serverLog{log: log}
	s, err := server.NewServer(&server.Options{
		ServerName: "jobs", DontListen: true, NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
		JetStream: true, StoreDir: dir,
		// By default JetStream syncs every two minutes, and a message that it has
		// acknowledged may be lost with the machine.
		SyncAlways: true,
		// The queue bounds its own bytes. Without a value JetStream allows itself three
		// quarters of the disk and of the memory.
		JetStreamMaxStore: 1 << 50, JetStreamMaxMemory: 16 << 20,
		MaxPayload: 8 << 20,
	})
	if err != nil {
		return nil, nil, err
	}
	s.SetLoggerV2(l, false, false, false)
	go s.Start()
	if !s.ReadyForConnections(startTimeout) || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		if reason := l.fatal.Load(); reason != nil {
			return nil, nil, errors.New(*reason)
		}
		return nil, nil, errors.New("JetStream does not start")
	}
	conn, err := nats.Connect("", nats.InProcessServer(s), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, nil, err
	}
	return s, conn, nil
}

// serverLog passes the server's log on: warnings and errors as warnings, the rest at
// level debug.
type serverLog struct {
	log   *slog.Logger
	fatal atomic.Pointer[string] // the reason why the server does not start
}

func (l *serverLog) put(level slog.Level, format string, v []any) {
	l.log.Log(context.Background(), level, "job store", slog.String("detail", fmt.Sprintf(format, v...)))
}

func (l *serverLog) Noticef(format string, v ...any) { l.put(slog.LevelDebug, format, v) }
func (l *serverLog) Warnf(format string, v ...any)   { l.put(slog.LevelWarn, format, v) }
func (l *serverLog) Errorf(format string, v ...any)  { l.put(slog.LevelWarn, format, v) }
func (l *serverLog) Debugf(format string, v ...any)  { l.put(slog.LevelDebug, format, v) }
func (l *serverLog) Tracef(string, ...any)           {}
func (l *serverLog) Fatalf(format string, v ...any) {
	reason := fmt.Sprintf(format, v...)
	l.fatal.CompareAndSwap(nil, &reason)
	l.put(slog.LevelWarn, format, v)
}

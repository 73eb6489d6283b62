package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
)

// sink is a server that discards requests: its latency is the minimum time to
// transfer a request and its response.
type sink struct{ listener net.Listener }

// sinkAnswer resembles a response of /detect.
const sinkAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n" + `{"reconstruction_error": 0 }`

// startSink listens on a free port. The sink must be closed.
func startSink() (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSink(c)
		}
	}()
	return s, nil
}

func serveSink(c net.Conn) {
	defer c.Close()
	// The buffer size of the service.
	r, chunk := bufio.NewReaderSize(c, 256<<10), make([]byte, 64<<10)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.CopyBuffer(io.Discard, onlyReader{req.Body}, chunk); err != nil {
			return
		}
		if _, err := io.WriteString(c, sinkAnswer); err != nil {
			return
		}
	}
}

// onlyReader hides WriterTo, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }

func (s *sink) close() { _ = s.listener.Close() }

// sending is the transfer time of a row's requests.
type sending struct {
	row *row
	p50 series
}

// round sends requests sequentially.
func (s *sending) round(ctx context.Context, to *sink, requests int) error {
	q := *s.row.requests
	q.expected = nil
	l := (&service{name: "sink", url: "http://" + to.listener.Addr().String()}).load(ctx, &q, 1, requests)
	s.p50 = append(s.p50, l.times.at(0.5))
	return l.why
}

package brokertest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy passes TCP connections on to an address, until they are cut.
type Proxy struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	conns map[net.Conn]bool
	held  chan struct{} // closed when bytes may pass; nil if they may
}

// NewProxy starts a proxy on 127.0.0.1, which ends with the test.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, to: to, conns: map[net.Conn]bool{}}
	go p.accept()
	t.Cleanup(func() {
		_ = l.Close()
		p.Mend()
		p.Drop()
	})
	return p
}

// Address returns host and port of the proxy.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Cut holds all bytes, in open and in new connections, as a network that loses packets does.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// Mend lets bytes pass again, also those that were held.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// Drop closes all open connections.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close() // the copies end
	}
}

func (p *Proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.pass(in)
	}
}

// wait waits until bytes may pass.
func (p *Proxy) wait() {
	for {
		p.mu.Lock()
		held := p.held
		p.mu.Unlock()
		if held == nil {
			return
		}
		<-held
	}
}

func (p *Proxy) pass(in net.Conn) {
	defer in.Close()
	p.wait()
	out, err := net.DialTimeout("tcp", p.to, 3*time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	p.add(in, out)
	defer p.remove(in, out)
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(pair[1], held{pair[0], p}) // until either side closes
			done <- struct{}{}
		}()
	}
	<-done
	_, _ = in.Close(), out.Close()
	<-done
}

func (p *Proxy) add(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = true
	}
}

func (p *Proxy) remove(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// held is a reader whose bytes wait while the proxy is cut.
type held struct {
	io.Reader
	p *Proxy
}

func (h held) Read(b []byte) (int, error) {
	n, err := h.Reader.Read(b)
	h.p.wait()
	return n, err
}

package api

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/gofiber/fiber/v2"
)

var errNoMemory = &problem{fiber.StatusServiceUnavailable, "The service holds as many uploads as it may, try again in a moment"}

// budget bounds what the uploads of all requests take together: each is bounded by
// itself, and nothing else bounds how many there are.
type budget struct {
	total int64
	left  atomic.Int64
}

// fill sets it to so many bytes, of which none are taken.
func (b *budget) fill(total int64) {
	b.total = total
	b.left.Store(total)
}

// share is what one request has taken of it. It is for one goroutine.
type share struct {
	of    *budget
	taken int64
}

// take adds to the share. It returns errNoMemory when there is not that much at
// the moment, and a 413 when there never is.
func (s *share) take(n int) error {
	if s.of.left.Add(-int64(n)) < 0 {
		s.of.left.Add(int64(n))
		if s.taken+int64(n) > s.of.total {
			return &problem{fiber.StatusRequestEntityTooLarge, fmt.Sprintf("The request takes more than the %d bytes of memory that all uploads together may take", s.of.total)}
		}
		return errNoMemory
	}
	s.taken += int64(n)
	return nil
}

// giveBack ends the share.
func (s *share) giveBack() {
	s.of.left.Add(s.taken)
	s.taken = 0
}

// send answers with a body that so much was taken for. That much stays taken until
// it was sent or its client has left: one who reads slowly holds it in memory long
// after the request has ended.
func (s *share) send(c *fiber.Ctx, body []byte) {
	kept := &share{of: s.of, taken: min(int64(len(body)), s.taken)}
	s.taken -= kept.taken
	c.Context().SetBodyStream(&sending{bytes.NewReader(body), kept}, len(body))
}

// sending is a body that is closed once it was sent, or cannot be.
type sending struct {
	*bytes.Reader
	share *share
}

func (s *sending) Close() error {
	s.share.giveBack()
	return nil
}

// charged is a reader whose bytes are kept in memory, and taken for that.
type charged struct {
	io.Reader
	share *share
}

func (c charged) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if taken := c.share.take(n); taken != nil {
		return n, taken
	}
	return n, err
}

// shareOf is the request's share, which ends with it but for what it sends.
func shareOf(c *fiber.Ctx) *share { return c.Locals(shareKey).(*share) }

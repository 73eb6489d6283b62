package api

import (
	"io"
	"sync/atomic"

	"github.com/gofiber/fiber/v2"
)

var errNoMemory = &problem{fiber.StatusServiceUnavailable, "The service holds as many uploads as it may, try again in a moment"}

// budget bounds what the uploads of all requests take together: each is bounded by
// itself, and nothing else bounds how many there are.
type budget struct{ left atomic.Int64 }

// share is what one request has taken of it. It is for one goroutine.
type share struct {
	of    *budget
	taken int64
}

// take adds to the share. It returns errNoMemory when there is not that much.
func (s *share) take(n int) error {
	if s.of.left.Add(-int64(n)) < 0 {
		s.of.left.Add(int64(n))
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

// shareOf is the request's share, which ends with it.
func shareOf(c *fiber.Ctx) *share { return c.Locals(shareKey).(*share) }

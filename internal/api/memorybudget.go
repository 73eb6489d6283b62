package api

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/gofiber/fiber/v2"
)

var errNoMemory = &problem{fiber.StatusServiceUnavailable, "The uploads in progress use all the memory that they may, try again in a moment"}

// memoryBudget bounds the memory of all requests together. The limits on single
// requests do not bound their number.
type memoryBudget struct {
	total     int64 // bytes
	available atomic.Int64
}

// reset sets the budget to total bytes, none of them reserved.
func (b *memoryBudget) reset(total int64) {
	b.total = total
	b.available.Store(total)
}

// reservation is the part of a memory budget that one request uses. A reservation
// must not be used by several goroutines at once.
type reservation struct {
	budget *memoryBudget
	bytes  int64
}

// reserve adds n bytes to the reservation. It returns errNoMemory if the budget has
// too little left at the moment, and a 413 problem if the request exceeds the whole
// budget.
func (r *reservation) reserve(n int) error {
	if r.budget.available.Add(-int64(n)) < 0 {
		r.budget.available.Add(int64(n))
		if r.bytes+int64(n) > r.budget.total {
			return &problem{fiber.StatusRequestEntityTooLarge, fmt.Sprintf("The request needs more than the %d bytes of memory that all uploads together may use", r.budget.total)}
		}
		return errNoMemory
	}
	r.bytes += int64(n)
	return nil
}

// release returns the reserved bytes to the budget.
func (r *reservation) release() {
	r.budget.available.Add(r.bytes)
	r.bytes = 0
}

// send answers with body, whose bytes were reserved before. They stay reserved until
// the body is sent or the client disconnects: with a slow client, the body stays in
// memory long after the handler has returned.
func (r *reservation) send(c *fiber.Ctx, body []byte) {
	c.Context().SetBodyStream(&reservedBody{bytes.NewReader(body), r.split(len(body))}, len(body))
}

// stream answers with a body of size bytes that is read while it is sent. n bytes, which
// were reserved before, stay reserved until then: what the reader has in memory.
func (r *reservation) stream(c *fiber.Ctx, body io.Reader, size int64, n int) {
	rest := r.split(n)
	c.Context().SetBodyStream(&closingBody{body, rest.release}, int(size))
}

// split moves n bytes, or all if there are fewer, to a new reservation.
func (r *reservation) split(n int) *reservation {
	rest := &reservation{budget: r.budget, bytes: min(int64(n), r.bytes)}
	r.bytes -= rest.bytes
	return rest
}

// reservedBody is the body of an answer. Close releases its reservation; fasthttp
// calls it when the body is sent or cannot be sent.
type reservedBody struct {
	*bytes.Reader
	reservation *reservation
}

func (b *reservedBody) Close() error {
	b.reservation.release()
	return nil
}

// reservingReader reserves the bytes that it reads. It is for bytes that stay in
// memory.
type reservingReader struct {
	io.Reader
	reservation *reservation
}

func (r reservingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if reserveErr := r.reservation.reserve(n); reserveErr != nil {
		return n, reserveErr
	}
	return n, err
}

// reservationOf returns the request's reservation. It is released when the handler
// returns, except for the part that send keeps.
func reservationOf(c *fiber.Ctx) *reservation { return c.Locals(reservationKey).(*reservation) }

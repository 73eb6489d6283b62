package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// A question is what one node asks another. Attempt is 0 if it asks whether a request waits for
// the job, else whether that attempt runs there.
type question struct {
	Job     string `json:"job"`
	Attempt int    `json:"attempt,omitempty"`
}

// answerYes is the first word of the answer to a question; any other is no. How many seconds the
// request still waits follows, if it does not wait for any time.
const answerYes = "yes"

// askTimeout bounds how long a node waits for the answer of another.
const askTimeout = 3 * time.Second

// nodeSubject is the subject of the questions to a node.
func nodeSubject(node string) string { return "jobs.node." + node }

// answerNodes answers the questions of other nodes until the connection is closed.
func (q *Queue) answerNodes() error {
	_, err := q.b.Conn.Subscribe(nodeSubject(q.node), func(m *nats.Msg) {
		var asked question
		if err := json.Unmarshal(m.Data, &asked); err != nil {
			return
		}
		answer := "no"
		q.mu.Lock()
		e := q.jobs[asked.Job]
		end, attended := q.attended[asked.Job]
		switch {
		case asked.Attempt == 0 && attended && !end.IsZero():
			answer = fmt.Sprintf("%s %.3f", answerYes, max(0, time.Until(end).Seconds()))
		case asked.Attempt == 0 && attended, asked.Attempt > 0 && e != nil && e.stop != nil && e.attempt == asked.Attempt:
			answer = answerYes
		}
		q.mu.Unlock()
		_ = m.Respond([]byte(answer)) // who asks asks again
	})
	return err
}

// ask asks a node. It reports whether the node answered, whether with yes, and what follows.
func (q *Queue) ask(ctx context.Context, node string, asked question) (answered, yes bool, more string) {
	data, err := json.Marshal(asked)
	if err != nil || node == "" {
		return false, false, ""
	}
	for range 2 { // the answer may be lost
		limited, cancel := context.WithTimeout(ctx, askTimeout)
		m, err := q.b.Conn.RequestWithContext(limited, nodeSubject(node), data)
		cancel()
		if err == nil {
			word, more, _ := strings.Cut(string(m.Data), " ")
			return true, word == answerYes, more
		}
		if errors.Is(err, nats.ErrNoResponders) {
			break
		}
	}
	return false, false, ""
}

// Attend marks a job as one that a request of this process waits for, until a time unless that
// is zero, and until stop is called. Keep cancels and removes attached jobs that no request
// waits for.
func (q *Queue) Attend(id string, end time.Time) (stop func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.attended[id] = end
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.attended, id)
	}
}

// Left returns how long the request still waits for an attached job, and whether that is
// limited. The node of the request measures the time, so that no two clocks are compared.
func (t *Task) Left(ctx context.Context) (left time.Duration, limited bool) {
	if !t.Job.Attached || t.q.b.Embedded() {
		return 0, false
	}
	_, _, more := t.q.ask(ctx, t.owner, question{Job: t.Job.ID})
	seconds, err := strconv.ParseFloat(more, 64)
	return time.Duration(seconds * float64(time.Second)), err == nil
}

package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

// A question is what one node asks another. Attempt is 0 if it asks whether a request waits for
// the job, else whether that attempt runs there.
type question struct {
	Job     string `json:"job"`
	Attempt int    `json:"attempt,omitempty"`
}

// answerYes is the answer to a question. Any other text is no.
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
		if asked.Attempt == 0 && q.attended[asked.Job] || asked.Attempt > 0 && e != nil && e.stop != nil && e.attempt == asked.Attempt {
			answer = answerYes
		}
		q.mu.Unlock()
		_ = m.Respond([]byte(answer)) // who asks asks again
	})
	return err
}

// ask reports whether a node answers a question with yes.
func (q *Queue) ask(ctx context.Context, node string, asked question) bool {
	data, err := json.Marshal(asked)
	if err != nil || node == "" {
		return false
	}
	for range 2 { // the answer may be lost
		limited, cancel := context.WithTimeout(ctx, askTimeout)
		m, err := q.b.Conn.RequestWithContext(limited, nodeSubject(node), data)
		cancel()
		if err == nil {
			return string(m.Data) == answerYes
		}
		if errors.Is(err, nats.ErrNoResponders) {
			return false
		}
	}
	return false
}

// Attend marks a job as one that a request of this process waits for, until end is called.
// Keep cancels and removes attached jobs that no request waits for.
func (q *Queue) Attend(id string) (end func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.attended[id] = true
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.attended, id)
	}
}

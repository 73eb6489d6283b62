package api

import (
	"bufio"
	"fmt"
	"net/http"
	"testing"

	"github.com/deepmed/anomaly/internal/jobs"
)

// get sends a request on a new connection and reads the headers of the answer alone.
func (s *service) get(t testing.TB, path string) *http.Response {
	t.Helper()
	conn := s.dial(t)
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return res
}

func TestJobModel_CountsSlowReadersInTheMemoryBudget(t *testing.T) {
	s := start(t, func(o *Options) { o.UploadBytes = 2*jobs.ContentMemory + jobs.ContentMemory/2 })
	j := s.submit(t, smallTraining(trainingZip(t, 2, nil))...)
	s.becomes(t, j.ID, jobs.Succeeded)
	path := "/jobs/" + j.ID + "/model"
	slow := []*http.Response{s.get(t, path), s.get(t, path)}
	for _, res := range slow {
		if res.StatusCode != 200 || res.ContentLength < 8<<20 { // more than the sockets hold
			t.Fatalf("%s, %d bytes", res.Status, res.ContentLength)
		}
	}
	if a := s.request(t, "GET", path, nil); a.status != 503 || a.message(t) != errNoMemory.message {
		t.Fatalf("status %d: %.100s", a.status, a.body)
	}
	// What one of them occupied is free again when it leaves.
	if n := s.memory.available.Load(); n > jobs.ContentMemory {
		t.Errorf("%d bytes are available", n)
	}
	s.request(t, "DELETE", "/jobs/"+j.ID, nil)
}

func TestJobEvents_RejectsTooManyStreams(t *testing.T) {
	s := start(t, nil)
	j := s.submit(t, longTraining(t)...)
	defer s.request(t, "DELETE", "/jobs/"+j.ID, nil)
	s.eventStreams.Store(maxEventStreams - 1)
	if res := s.get(t, "/jobs/"+j.ID+"/events"); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	a := s.request(t, "GET", "/jobs/"+j.ID+"/events", nil)
	if a.status != 503 || a.message(t) != errManyStreams.message || a.header.Get("Retry-After") == "" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	s.request(t, "DELETE", "/jobs/"+j.ID, nil)
	eventually(t, "the stream has ended", func() bool { return s.eventStreams.Load() == maxEventStreams-1 })
	if status, _ := s.events(t, j.ID, ""); status != 200 {
		t.Errorf("status %d", status)
	}
}

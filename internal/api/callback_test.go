package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/deepmed/anomaly/internal/jobs"
)

func TestCallback_IsTriedUntilItIsAccepted(t *testing.T) {
	got := make(chan jobs.Job, 10)
	var tries atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var j jobs.Job
		if err := json.NewDecoder(r.Body).Decode(&j); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %s %v", err, r.Method, r.Header)
		}
		got <- j
	}))
	defer receiver.Close()
	s := start(t, nil)
	j := s.submit(t, smallTraining(trainingZip(t, 2, nil), text("callback_url", receiver.URL+"/done"))...)
	if called := <-got; called.ID != j.ID || called.State != jobs.Succeeded || called.ModelSHA256 == nil {
		t.Errorf("%+v", called)
	}
	j = s.submit(t, longTraining(t, text("callback_url", receiver.URL))...)
	s.request(t, "DELETE", "/jobs/"+j.ID, nil)
	if called := <-got; called.ID != j.ID || called.State != jobs.Cancelled {
		t.Errorf("%+v", called)
	}
	if n := tries.Load(); n != 3 {
		t.Errorf("%d calls", n)
	}
}

func TestCallback_OfAForbiddenURLIsRejected(t *testing.T) {
	zipped := trainingZip(t, 2, nil)
	for _, c := range []struct {
		hosts  []string
		url    string
		status int
	}{
		{nil, "http://127.0.0.1:1/x", 202},
		{nil, "prose", 400},
		{nil, "file:///etc/passwd", 400},
		{nil, "http://user:secret@127.0.0.1/", 400},
		{nil, "http://169.254.169.254/latest/meta-data", 400},
		{nil, "http://[fe80::1]/", 400},
		{nil, "http://0.0.0.0/", 400},
		{nil, "http://example.org/" + strings.Repeat("x", maxCallbackURL), 413},
		{[]string{"example.org"}, "http://127.0.0.1/", 403},
		{[]string{"127.0.0.1"}, "http://127.0.0.1:1/", 202},
		{[]string{noCallbacks}, "http://127.0.0.1/", 403},
	} {
		s := start(t, func(o *Options) { o.CallbackHosts = c.hosts })
		if a := s.post(t, "/jobs", smallTraining(zipped, text("callback_url", c.url))...); a.status != c.status {
			t.Errorf("%v %s: status %d: %s", c.hosts, c.url, a.status, a.body)
		}
	}
}

// The name of a host may resolve to an address that is not allowed.
func TestCallback_ChecksTheAddressThatItConnectsTo(t *testing.T) {
	err := callBack(t.Context(), "http://169.254.169.254/", jobs.Job{})
	if err == nil || !strings.Contains(err.Error(), errCallbackAddress.Error()) {
		t.Error(err)
	}
	for text, want := range map[string]bool{"10.0.0.1": true, "::1": true, "8.8.8.8": true, "::ffff:169.254.1.1": false, "224.0.0.1": false, "::": false} {
		if got := allowedCallback(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
)

func TestCallback_IsSignedAndTriedUntilItIsAccepted(t *testing.T) {
	const secret = "0123456789abcdef secret"
	got := make(chan jobs.Job, 10)
	var tries atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		body, _ := io.ReadAll(r.Body)
		// The signature is computed here as docs/http.md describes it.
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%s.%s", r.Header.Get("X-Anomaly-Timestamp"), body)
		if got, want := r.Header.Get("X-Anomaly-Signature"), "sha256="+hex.EncodeToString(mac.Sum(nil)); got != want {
			t.Errorf("signature %q, expected %q", got, want)
		}
		at, err := strconv.ParseInt(r.Header.Get("X-Anomaly-Timestamp"), 10, 64)
		if age := time.Since(time.Unix(at, 0)); err != nil || age < -time.Second || age > time.Minute {
			t.Errorf("timestamp %q: %v, %v", r.Header.Get("X-Anomaly-Timestamp"), age, err)
		}
		var j jobs.Job
		if err := json.Unmarshal(body, &j); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %s %v", err, r.Method, r.Header)
		}
		got <- j
	}))
	defer receiver.Close()
	s := start(t, func(o *Options) { o.CallbackHosts, o.CallbackSecret = []string{"127.0.0.1"}, []byte(secret) })
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
		{nil, "http://127.0.0.1:1/x", 403},
		{nil, "https://example.org/", 403},
		{nil, "prose", 400},
		{nil, "file:///etc/passwd", 400},
		{nil, "http://user:secret@127.0.0.1/", 400},
		{nil, "http://example.org/" + strings.Repeat("x", maxCallbackURL), 413},
		{[]string{"example.org"}, "http://127.0.0.1/", 403},
		{[]string{"example.org"}, "http://example.org.attacker.test/", 403},
		{[]string{"example.org"}, "http://attacker.test/example.org", 403},
		{[]string{"example.org"}, `http://attacker.test\@example.org/`, 400},
		{[]string{"169.254.169.254", "fe80::1", "0.0.0.0"}, "http://169.254.169.254/latest/meta-data", 400},
		{[]string{"169.254.169.254", "fe80::1", "0.0.0.0"}, "http://[fe80::1]/", 400},
		{[]string{"169.254.169.254", "fe80::1", "0.0.0.0"}, "http://0.0.0.0/", 400},
		{[]string{"other.test", "127.0.0.1"}, "http://127.0.0.1:1/", 202},
	} {
		s := start(t, func(o *Options) { o.CallbackHosts = c.hosts })
		if a := s.post(t, "/jobs", smallTraining(zipped, text("callback_url", c.url))...); a.status != c.status {
			t.Errorf("%v %s: status %d: %s", c.hosts, c.url, a.status, a.body)
		}
	}
}

// The name of a host may resolve to an address that is not allowed.
func TestCallback_ChecksTheAddressThatItConnectsTo(t *testing.T) {
	_, err := callbackClient.Get("http://169.254.169.254/")
	if !errors.Is(err, errCallbackAddress) {
		t.Error(err)
	}
	for text, want := range map[string]bool{"10.0.0.1": true, "::1": true, "8.8.8.8": true, "::ffff:169.254.1.1": false, "224.0.0.1": false, "::": false} {
		if got := allowedCallback(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestCallback_IsNotSentToAHostThatIsNotAllowedAnyMore(t *testing.T) {
	var calls atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	defer receiver.Close()
	s := &Server{log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		hosts []string
		want  int32
	}{{nil, 0}, {[]string{"example.org"}, 0}, {[]string{"127.0.0.1"}, 1}} {
		s.options.CallbackHosts = c.hosts
		if err := s.callBack(t.Context(), receiver.URL, jobs.Job{}); err != nil || calls.Load() != c.want {
			t.Errorf("%v: %d calls, %v", c.hosts, calls.Load(), err)
		}
	}
}

func TestCallback_FollowsNoRedirectAndLogsNoURL(t *testing.T) {
	var calls atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
	}))
	s := &Server{log: slog.New(slog.DiscardHandler), options: Options{CallbackHosts: []string{"127.0.0.1"}}}
	if err := s.callBack(t.Context(), receiver.URL, jobs.Job{}); err == nil || calls.Load() != 1 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
	receiver.Close()
	if err := s.callBack(t.Context(), receiver.URL+"/?key=hidden", jobs.Job{}); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
}

func TestCheckCallbacks_AcceptsOnlyHosts(t *testing.T) {
	for _, host := range []string{"", "*", "*.example.org", "http://example.org", "example.org:80", "example.org/x", "a@example.org", "a b", "example.org?x", "example.org#x"} {
		if got, err := checkCallbacks([]string{"example.org", host}, nil); !errors.Is(err, ErrCallbackHost) {
			t.Errorf("%q: %q, %v", host, got, err)
		}
	}
	got, err := checkCallbacks([]string{"Example.ORG", "127.0.0.1", "::1", "localhost"}, []byte("x"))
	if err != nil || !slices.Equal(got, []string{"example.org", "127.0.0.1", "::1", "localhost"}) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := checkCallbacks(nil, []byte("x")); !errors.Is(err, ErrCallbackSecret) {
		t.Error(err)
	}
}

func TestReadCallbackSecret_RejectsUnusableFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if _, err := ReadCallbackSecret(path); !errors.Is(err, ErrCallbackSecret) {
		t.Error(err)
	}
	for content, want := range map[string]string{"": "", "short\n": "", strings.Repeat("x", maxSecretFile+1): "", " 0123456789 abcdef\n": "0123456789 abcdef"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadCallbackSecret(path)
		if string(got) != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, ErrCallbackSecret) {
			t.Errorf("%.30q: %q, %v", content, got, err)
		}
	}
}

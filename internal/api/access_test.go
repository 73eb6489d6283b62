package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
)

func TestToken_IsRequiredExceptForProbes(t *testing.T) {
	const token = "correct-horse-battery"
	s := start(t, func(o *Options) { o.Token = token })
	for _, c := range []struct {
		name, method, path, authorization string
		status                            int
	}{
		{"health without", "GET", "/health", "", 200},
		{"livez without", "GET", "/livez", "", 200},
		{"readyz without", "GET", "/readyz", "", 200},
		{"the protocol's liveness without", "GET", "/v2/health/live", "", 200},
		{"the protocol's readiness without", "GET", "/v2/health/ready", "", 200},
		{"the list of models without", "GET", "/models", "", 401},
		{"putting a model without", "PUT", "/models/x", "", 401},
		{"deleting a model without", "DELETE", "/models/x", "", 401},
		{"detecting by name without", "POST", "/models/x/detect", "", 401},
		{"the protocol's server without", "GET", "/v2", "", 401},
		{"inferring without", "POST", "/v2/models/x/infer", "", 401},
		{"the list of models with", "GET", "/models", "Bearer " + token, 404},
		{"metrics without", "GET", "/metrics", "", 401},
		{"the description without", "GET", "/openapi.json", "", 401},
		{"detect without", "POST", "/detect", "", 401},
		{"train without", "POST", "/train", "", 401},
		{"an unknown path without", "GET", "/x", "", 401},
		{"health by a longer path", "GET", "/health/../metrics", "", 401},
		{"health's path with a dot", "GET", "/./metrics", "", 401},
		{"metrics with", "GET", "/metrics", "Bearer " + token, 200},
		{"in lower case", "GET", "/metrics", "bearer " + token, 200},
		{"with two spaces", "GET", "/metrics", "Bearer  " + token, 200},
		{"detect with", "POST", "/detect", "Bearer " + token, 400},
		{"an unknown path with", "GET", "/x", "Bearer " + token, 404},
		{"another scheme", "GET", "/metrics", "Basic " + token, 401},
		{"no scheme", "GET", "/metrics", token, 401},
		{"a wrong token", "GET", "/metrics", "Bearer correct-horse-batterz", 401},
		{"the token's beginning", "GET", "/metrics", "Bearer correct-horse", 401},
		{"more than the token", "GET", "/metrics", "Bearer " + token + "x", 401},
		{"the token in other letters", "GET", "/metrics", "Bearer " + strings.ToUpper(token), 401},
		{"nothing behind the scheme", "GET", "/metrics", "Bearer ", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := http.Header{}
			if c.authorization != "" {
				h.Set("Authorization", c.authorization)
			}
			a := s.request(t, c.method, c.path, h)
			if a.status != c.status {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			if a.status == 401 && (a.header.Get("WWW-Authenticate") == "" || a.message(t) == "" || strings.Contains(string(a.body), token)) {
				t.Errorf("WWW-Authenticate %q: %s", a.header.Get("WWW-Authenticate"), a.body)
			}
		})
	}
}

func TestReadToken_RejectsUnusableFiles(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		ok      bool
	}{
		"a token":           {"0123456789abcdef", true},
		"with a line end":   {"0123456789abcdef\n", true},
		"all signs":         {"aZ09-._~+/aZ09-._~+/==", true},
		"empty":             {"", false},
		"only white space":  {" \n\n", false},
		"too short":         {"0123456789abcde", false},
		"of two lines":      {"0123456789abcdef\n0123456789abcdef", false},
		"with a space":      {"0123456789 abcdef", false},
		"with a zero byte":  {"0123456789\x00abcdef", false},
		"that is not ASCII": {"0123456789abcdéf0", false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			token, err := ReadToken(path)
			if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrToken) || c.ok && token != strings.TrimSpace(c.content) {
				t.Errorf("%q, %v", token, err)
			}
			if err != nil && c.content != "" && strings.Contains(err.Error(), "0123456789") {
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
	if _, err := ReadToken(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, ErrToken) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestCORS_AllowsOnlyConfiguredOrigins(t *testing.T) {
	for _, c := range []struct {
		name    string
		origins []string
		origin  string
		allowed string
	}{
		{"none set", nil, "https://a.example", ""},
		{"named", []string{"https://a.example", "http://b.example:8080"}, "http://b.example:8080", "http://b.example:8080"},
		{"another", []string{"https://a.example"}, "https://evil.example", ""},
		{"another scheme", []string{"https://a.example"}, "http://a.example", ""},
		{"a longer name", []string{"https://a.example"}, "https://a.example.evil.example", ""},
		{"all", []string{"*"}, "https://whoever.example", "*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, func(o *Options) { o.Origins, o.Token = c.origins, "0123456789abcdef" })
			a := s.request(t, "GET", "/health", http.Header{"Origin": {c.origin}})
			if got := a.header.Get("Access-Control-Allow-Origin"); got != c.allowed || a.status != 200 {
				t.Errorf("status %d, allowed %q", a.status, got)
			}
			if a.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Error("credentials are allowed")
			}
			// A preflight request has no token.
			a = s.request(t, "OPTIONS", "/detect", http.Header{"Origin": {c.origin}, "Access-Control-Request-Method": {"POST"}})
			if got := a.header.Get("Access-Control-Allow-Origin"); got != c.allowed {
				t.Errorf("preflight: status %d, allowed %q", a.status, got)
			}
			if c.allowed != "" && (a.status != 204 || !strings.Contains(a.header.Get("Access-Control-Allow-Headers"), "Authorization")) {
				t.Errorf("preflight: status %d, headers %v", a.status, a.header)
			}
		})
	}
}

func TestNew_RejectsInvalidOrigins(t *testing.T) {
	for _, origin := range []string{"", "a.example", "https://", "https://a.example/", "https://a.example/path", "ftp://a.example", "https://a.example,https://b.example", "https://*.example", "null"} {
		s, err := New(orttest.Open(t), slog.New(slog.DiscardHandler), Options{Origins: []string{origin}, TempDir: t.TempDir()})
		if !errors.Is(err, ErrOrigin) {
			t.Errorf("%q: %v", origin, err)
			_ = s.Shutdown(0)
		}
	}
}

func TestToken_IsOneOfSeveral(t *testing.T) {
	one, two, three := "the-token-of-caller-1", "the-token-of-caller-2", "the-token-of-caller-3"
	for name, c := range map[string]struct {
		token  string
		tokens []string
		status map[string]int
	}{
		"several":              {"", []string{one, two}, map[string]int{one: 200, two: 200, three: 401, "": 401}},
		"several and a single": {three, []string{one, two}, map[string]int{one: 200, two: 200, three: 200, "": 401, one + two: 401}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, func(o *Options) { o.Token, o.Tokens = c.token, c.tokens })
			for token, want := range c.status {
				if a := s.request(t, "GET", "/metrics", http.Header{"Authorization": {"Bearer " + token}}); a.status != want {
					t.Errorf("%q: status %d, expected %d", token, a.status, want)
				}
			}
		})
	}
}

func TestReadTokens_RejectsUnusableFiles(t *testing.T) {
	const one, two = "0123456789abcdef", "0123456789abcdeg"
	for name, c := range map[string]struct {
		content, reason string
		n               int
	}{
		"two tokens":            {one + "\n\n " + two + " \r\n", "", 2},
		"a single one":          {one, "", 1},
		"nothing":               {"\n \n", "no tokens", 0},
		"a short one":           {one + "\nshort", "line 2", 0},
		"a token with a space":  {one + "\n" + one + " " + two, "line 2", 0},
		"the same twice":        {one + "\n" + two + "\n" + one, "line 3", 0},
		"more than are allowed": {manyTokens(maxTokens + 1), "more than", 0},
		"as many as allowed":    {manyTokens(maxTokens), "", maxTokens},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			tokens, err := ReadTokens(path)
			if len(tokens) != c.n || (err != nil) != (c.reason != "") {
				t.Errorf("%d tokens, %v", len(tokens), err)
			}
			if err != nil && (!errors.Is(err, ErrToken) || !strings.Contains(err.Error(), c.reason) || strings.Contains(err.Error(), one)) {
				t.Errorf("%v, expected %q", err, c.reason)
			}
		})
	}
	if _, err := ReadTokens("/nowhere"); !errors.Is(err, ErrToken) {
		t.Error(err)
	}
}

// manyTokens returns lines with n tokens.
func manyTokens(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "token-number-%08d\n", i)
	}
	return b.String()
}

package api

import (
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/web"
)

func TestPage_RefersToFilesThatAreServedWithAStrictPolicy(t *testing.T) {
	s := start(t, func(o *Options) { o.Token = "a-token-for-this-test" }) // the page needs none
	index := s.request(t, http.MethodGet, "/", nil)
	if index.status != http.StatusOK || index.header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("status %d, type %q", index.status, index.header.Get("Content-Type"))
	}
	if h := index.header.Get("Cache-Control"); h != "no-cache" {
		t.Errorf("the page itself has Cache-Control %q: a new version would not be noticed", h)
	}
	if regexp.MustCompile(`(?i)<script>|<style|\son[a-z]+=|\sstyle=|https?:`).Match(index.body) {
		t.Errorf("the page has inline code or names a host:\n%s", index.body)
	}
	references := regexp.MustCompile(`(?:src|href)="(page/[^"]+)"`).FindAllSubmatch(index.body, -1)
	if len(references) != 3 {
		t.Fatalf("%d references in the page, want the script, the style and the icon", len(references))
	}
	types := map[string]string{".js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
	for _, r := range references {
		name := "/" + string(r[1])
		a := s.request(t, http.MethodGet, name, nil)
		if want := types[name[len(name)-3:]]; a.status != http.StatusOK || a.header.Get("Content-Type") != want || len(a.body) == 0 {
			t.Errorf("%s: status %d, type %q, %d bytes", name, a.status, a.header.Get("Content-Type"), len(a.body))
		}
		immutable := strings.Contains(a.header.Get("Cache-Control"), "immutable")
		if hashed := !strings.HasSuffix(name, ".svg"); immutable != hashed {
			t.Errorf("%s: Cache-Control %q", name, a.header.Get("Cache-Control"))
		}
		for _, a := range []answer{a, index} {
			for header, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Content-Security-Policy": pagePolicy} {
				if got := a.header.Get(header); got != want {
					t.Errorf("%s: %s is %q, want %q", name, header, got, want)
				}
			}
		}
	}
	for _, must := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(pagePolicy, must) || strings.Contains(pagePolicy, "unsafe") {
			t.Errorf("the policy is %q", pagePolicy)
		}
	}
}

func TestPage_IsNotSentAgainToAClientThatHasIt(t *testing.T) {
	s := start(t, nil)
	first := s.request(t, http.MethodGet, "/", nil)
	tag := first.header.Get("ETag")
	for _, c := range []struct {
		name, ifNoneMatch string
		status            int
	}{
		{"its tag", tag, http.StatusNotModified},
		{"a weak tag", "W/" + tag, http.StatusNotModified},
		{"one of several", `"x", ` + tag, http.StatusNotModified},
		{"another tag", `"x"`, http.StatusOK},
	} {
		a := s.request(t, http.MethodGet, "/", http.Header{"If-None-Match": {c.ifNoneMatch}})
		if a.status != c.status || (len(a.body) == 0) != (c.status == http.StatusNotModified) {
			t.Errorf("%s: status %d, %d bytes", c.name, a.status, len(a.body))
		}
	}
}

func TestPage_IsNotServedWithoutTheOption(t *testing.T) {
	s := start(t, func(o *Options) { o.Page = false })
	for _, path := range []string{"/", "/page/icon.svg"} {
		if a := s.request(t, http.MethodGet, path, nil); a.status != http.StatusNotFound {
			t.Errorf("%s: status %d", path, a.status)
		}
	}
}

func TestPage_ServesNoOtherFiles(t *testing.T) {
	s := start(t, nil)
	for _, path := range []string{"/page/", "/page/none.js", "/page/../web.go", "/page/%2e%2e/web.go", "/page/..%2fweb.go"} {
		if a := s.request(t, http.MethodGet, path, nil); a.status != http.StatusNotFound || !strings.Contains(string(a.body), `"error"`) {
			t.Errorf("%s: status %d: %.80s", path, a.status, a.body)
		}
	}
}

func TestPage_NamesTheLicensesOfItsCode(t *testing.T) {
	notice, err := fs.ReadFile(web.Files(), "NOTICE.txt")
	if err != nil || !strings.Contains(string(notice), "preact") || !strings.Contains(string(notice), "MIT License") {
		t.Errorf("%v: %.200s", err, notice)
	}
}

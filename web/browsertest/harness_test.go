//go:build browser

// Package browsertest tests the web page in a browser: make browser runs it. It must hold
// tests only.
package browsertest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/deepmed/anomaly/internal/testkit"
)

// service is a running service with its address.
type service struct {
	t    *testing.T
	url  string
	args []string
	cmd  *exec.Cmd
}

// binaries is the folder of the service that the tests share.
var binaries string

func TestMain(m *testing.M) {
	code := 1
	defer func() { os.Exit(code) }()
	var err error
	if binaries, err = os.MkdirTemp("", "anomaly-browser-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer os.RemoveAll(binaries)
	code = m.Run()
}

var buildService = sync.OnceValues(func() (string, error) {
	file := filepath.Join(binaries, "anomaly")
	out, err := exec.Command("go", "build", "-trimpath", "-o", file, "../../cmd/anomaly").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return file, nil
})

// serve starts a service with more arguments and stops it after the test.
func serve(t *testing.T, args ...string) *service {
	t.Helper()
	port := testkit.FreePort(t)
	s := &service{t: t, url: "http://" + net.JoinHostPort("127.0.0.1", port), args: append([]string{"serve", "--addr", "127.0.0.1:" + port, "--log-level", "warn", "--temp-dir", t.TempDir()}, args...)}
	t.Cleanup(s.stop)
	s.start()
	return s
}

// start starts the service, and waits until it is ready.
func (s *service) start() {
	s.t.Helper()
	file, err := buildService()
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command(file, s.args...)
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for range 400 {
		if res, err := http.Get(s.url + "/readyz"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatal("the service does not start")
}

// kill kills the service as kill -9 does.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func (s *service) stop() {
	if s.cmd != nil && s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
	}
}

// tab is a tab of a browser that collects what goes wrong in it.
type tab struct {
	t         *testing.T
	ctx       context.Context
	downloads string
	mu        sync.Mutex
	problems  []string
}

// violationScript reports violations of the policy as errors on the console, also those
// that a browser would log elsewhere.
const violationScript = `addEventListener('securitypolicyviolation', e => console.error('policy violated: ' + e.violatedDirective + ' ' + e.blockedURI))`

// openTab starts a browser. The test fails if an error appears on its console.
func openTab(t *testing.T) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.WindowSize(1280, 900),
		chromedp.Flag("use-fake-device-for-media-stream", true), chromedp.Flag("use-fake-ui-for-media-stream", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	// chromedp logs each event that it does not know.
	ctx, stop := chromedp.NewContext(allocator, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(stop)
	b := &tab{t: t, ctx: ctx, downloads: t.TempDir()}
	chromedp.ListenTarget(ctx, func(e any) {
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			b.problem("exception: " + e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
				var words []string
				for _, a := range e.Args {
					words = append(words, string(a.Value))
				}
				b.problem("console: " + strings.Join(words, " "))
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.LevelError || e.Entry.Level == log.LevelWarning {
				b.problem("log: " + e.Entry.Text + " " + e.Entry.URL)
			}
		}
	})
	b.run(
		chromedp.ActionFunc(func(ctx context.Context) error {
			_, err := page.AddScriptToEvaluateOnNewDocument(violationScript).Do(ctx)
			return err
		}),
		browser.SetDownloadBehavior(browser.SetDownloadBehaviorBehaviorAllow).WithDownloadPath(b.downloads).WithEventsEnabled(true),
	)
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range b.problems {
			t.Errorf("in the browser: %s", p)
		}
	})
	return b
}

func (b *tab) problem(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, text)
}

// forgive removes the problems that contain a text: those that a test causes on purpose.
// It fails if there are none.
func (b *tab) forgive(text string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var kept []string
	for _, p := range b.problems {
		if !strings.Contains(p, text) {
			kept = append(kept, p)
		}
	}
	if len(kept) == len(b.problems) {
		b.t.Errorf("no problem with %q in %q", text, b.problems)
	}
	b.problems = kept
}

// run runs actions for at most a minute.
func (b *tab) run(actions ...chromedp.Action) {
	b.t.Helper()
	b.runFor(time.Minute, actions...)
}

func (b *tab) runFor(limit time.Duration, actions ...chromedp.Action) {
	b.t.Helper()
	ctx := b.ctx
	if chromedp.FromContext(ctx).Target != nil { // the first run starts the browser, which must outlive it
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, limit)
		defer stop()
	}
	if err := chromedp.Run(ctx, actions...); err != nil {
		var text string
		_ = chromedp.Run(b.ctx, chromedp.Evaluate(`document.body?.innerText ?? ''`, &text))
		b.t.Fatalf("%v\nThe page shows:\n%s\nProblems: %q", err, text, b.problems)
	}
}

// open opens a view of the page and waits until it is shown.
func (b *tab) open(url, hash string) {
	b.t.Helper()
	b.run(chromedp.Navigate(url+"/"+hash), chromedp.WaitVisible("main h1", chromedp.ByQuery))
}

// until waits until a JavaScript expression is true.
func (b *tab) until(what, expression string, limit time.Duration) {
	b.t.Helper()
	end := time.Now().Add(limit)
	for {
		var ok bool
		b.run(chromedp.Evaluate("Boolean("+expression+")", &ok))
		if ok {
			return
		}
		if time.Now().After(end) {
			var text string
			b.run(chromedp.Evaluate(`document.body.innerText`, &text))
			b.t.Fatalf("%s: not after %v. The page shows:\n%s", what, limit, text)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// shows waits until the main part of the page has a text.
func (b *tab) shows(text string, limit time.Duration) {
	b.t.Helper()
	quoted, _ := json.Marshal(text)
	b.until("shows "+text, "document.querySelector('#app').innerText.includes("+string(quoted)+")", limit)
}

// value returns the value of a JavaScript expression as T.
func value[T any](b *tab, expression string) T {
	b.t.Helper()
	var v T
	b.run(chromedp.Evaluate(expression, &v))
	return v
}

// click clicks on the visible button, link or option with this text, or with this first
// line of a longer text.
func (b *tab) click(text string) {
	b.t.Helper()
	b.clickIn("body", text)
}

// clickIn is click inside of the first element that a selector matches.
func (b *tab) clickIn(selector, text string) {
	b.t.Helper()
	within, _ := json.Marshal(selector)
	quoted, _ := json.Marshal(text)
	script := `(() => {
		const text = ` + string(quoted) + `;
		const named = e => e.checkVisibility() && [e.getAttribute('aria-label') ?? e.innerText, e.innerText.split('\n')[0]].some(t => t.trim() === text);
		const scope = document.querySelector('dialog[open]') ?? document.querySelector(` + string(within) + `);
		const e = [...(scope?.querySelectorAll('button, a, summary, label') ?? [])].find(named);
		if (!e || e.disabled) return false;
		e.scrollIntoView({block: 'center'});
		e.click();
		return true;
	})()`
	b.until("button "+text, script, 20*time.Second)
}

// choose sets the files of the nth input for files.
func (b *tab) choose(selector string, files ...string) {
	b.t.Helper()
	b.run(chromedp.SetUploadFiles(selector, files, chromedp.ByQuery))
}

// fill types into the field with a label.
func (b *tab) fill(label, text string) {
	b.t.Helper()
	l, _ := json.Marshal(label)
	b.until("field "+label, `(() => {
		document.querySelectorAll('[data-filled]').forEach(e => e.removeAttribute('data-filled'));
		const scope = document.querySelector('dialog[open]') ?? document;
		const field = [...scope.querySelectorAll('label')].find(l => l.innerText.trim().startsWith(`+string(l)+`))?.querySelector('input, select');
		field?.setAttribute('data-filled', '');
		field?.select?.();
		return field;
	})()`, 10*time.Second)
	b.run(chromedp.SendKeys("[data-filled]", text, chromedp.ByQuery))
}

// downloaded waits for a download and returns its content.
func (b *tab) downloaded(name string) []byte {
	b.t.Helper()
	for range 200 {
		if content, err := os.ReadFile(filepath.Join(b.downloads, name)); err == nil && len(content) > 0 {
			return content
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("no download %s", name)
	return nil
}

// files returns the paths of up to n files of a folder of the tiles.
func files(t *testing.T, folder string, n int) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "tiles", filepath.FromSlash(folder), "*"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no files in %s: %v", folder, err)
	}
	return list[:min(n, len(list))]
}

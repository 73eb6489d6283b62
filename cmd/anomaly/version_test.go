package main

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersion_IsPrintedWithoutALibrary(t *testing.T) {
	c := command(t, "--version")
	c.Env = append(c.Env, "ANOMALY_ONNXRUNTIME=/nowhere")
	r := finish(t, c)
	if r.status != exitNormal || r.stderr != "" || !strings.HasPrefix(r.stdout, "anomaly version ") || !strings.HasSuffix(r.stdout, runtime.Version()+"\n") {
		t.Errorf("exit %d: %q, %q", r.status, r.stdout, r.stderr)
	}
}

func TestDescribeBuild_NamesVersionAndRevision(t *testing.T) {
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	modified := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	for _, c := range []struct {
		version  string
		settings []debug.BuildSetting
		want     string
	}{
		{"", nil, "(devel), go1.26.0"},
		{"v1.2.3", nil, "v1.2.3, go1.26.0"},
		{"v1.2.3", []debug.BuildSetting{revision}, "v1.2.3, revision 0123456789ab, go1.26.0"},
		{"(devel)", []debug.BuildSetting{revision, modified}, "(devel), revision 0123456789ab, modified, go1.26.0"},
		{"v0.0.0-20260101000000-0123456789ab+dirty", []debug.BuildSetting{revision, modified}, "v0.0.0-20260101000000-0123456789ab+dirty, go1.26.0"},
	} {
		info := &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: c.version}, Settings: c.settings}
		if got := describeBuild(info); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

package ort_test

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
)

func TestLibraryTable_PinsOneVersionForEveryPlatform(t *testing.T) {
	platforms := map[string]bool{}
	for _, p := range orttest.Pins(t) {
		if p.Version != ort.LibraryVersion() {
			t.Errorf("%s %s has version %s, want %s", p.Client, p.Package, p.Version, ort.LibraryVersion())
		}
		if b, err := hex.DecodeString(p.SHA256); err != nil || len(b) != 32 {
			t.Errorf("%s %s %s: %q is not a SHA-256", p.OS, p.Arch, p.Client, p.SHA256)
		}
		if p.Client != "npm" && p.Client != "pip" {
			t.Errorf("unknown client %q", p.Client)
		}
		if p.Shared() && p.Name != ort.LibraryNames(p.OS)[0] {
			t.Errorf("%s/%s installs %s, FindLibrary tries %s first", p.OS, p.Arch, p.Name, ort.LibraryNames(p.OS)[0])
		}
		if !strings.HasSuffix(p.Package, "-gpu") {
			platforms[p.OS+"/"+p.Arch+" "+p.Client] = true
		}
	}
	for _, want := range []string{"linux/amd64", "linux/arm64", "darwin/arm64"} {
		for _, client := range []string{"npm", "pip"} {
			if !platforms[want+" "+client] {
				t.Errorf("no library for %s from %s", want, client)
			}
		}
	}
}

func TestVerifyLibrary_RefusesOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "libonnxruntime.so")
	if err := os.WriteFile(path, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".absent"} {
		if err := orttest.VerifyLibrary(t, p); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestCacheDir_HoldsThePinnedLibrary(t *testing.T) {
	dir, err := ort.CacheDir()
	if err != nil {
		t.Skip(err)
	}
	path, err := ort.FirstLibrary([]string{dir})
	if err != nil {
		t.Skip(`no library in the cache: run "make runtime"`)
	}
	if err := orttest.VerifyLibrary(t, path); err != nil {
		t.Error(err)
	}
}

package ort

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// touch makes an empty file, and the folders above it.
func touch(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEachPlatformHasOneVersionAndWholeHashes(t *testing.T) {
	platforms := map[string]bool{}
	for _, p := range pins {
		if p.version != LibraryVersion() {
			t.Errorf("%s %s is at version %s, the first row at %s: one release is pinned", p.client, p.pkg, p.version, LibraryVersion())
		}
		if b, err := hex.DecodeString(p.sha256); err != nil || len(b) != 32 {
			t.Errorf("%s %s %s: %q is no SHA-256", p.os, p.arch, p.client, p.sha256)
		}
		if p.client != "npm" && p.client != "pip" {
			t.Errorf("unknown client %q", p.client)
		}
		if p.shared() && p.name != libraryNames(p.os)[0] {
			t.Errorf("%s/%s installs %s, and FindLibrary looks for %s first", p.os, p.arch, p.name, libraryNames(p.os)[0])
		}
		if !strings.HasSuffix(p.pkg, "-gpu") {
			platforms[p.os+"/"+p.arch+" "+p.client] = true
		}
	}
	for _, want := range []string{"linux/amd64", "linux/arm64", "darwin/arm64"} {
		for _, client := range []string{"npm", "pip"} {
			if !platforms[want+" "+client] {
				t.Errorf("no library is pinned for %s from %s", want, client)
			}
		}
	}
}

func TestCacheFollowsItsVariable(t *testing.T) {
	root := t.TempDir()
	t.Setenv(EnvCache, root)
	got, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(root, "onnxruntime", LibraryVersion()); got != want {
		t.Errorf("CacheDir is %s, want %s", got, want)
	}

	t.Setenv(EnvCache, "")
	t.Setenv("HOME", root)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(root, ".cache"))
	got, err = CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join("deepmed-anomaly", "onnxruntime", LibraryVersion()); !strings.HasPrefix(got, root) || !strings.HasSuffix(got, want) {
		t.Errorf("CacheDir is %s, want .../%s under %s", got, want, root)
	}
}

func TestFlagGoesBeforeVariableBeforeCache(t *testing.T) {
	name := libraryNames(runtime.GOOS)[0]
	dir := t.TempDir()
	flagFile := touch(t, filepath.Join(dir, "flag", "any-name.so"))
	envFile := touch(t, filepath.Join(dir, "env", name))
	cacheFile := touch(t, filepath.Join(dir, "cache", "onnxruntime", LibraryVersion(), name))
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.so")

	for _, tt := range []struct {
		name      string
		flag, env string
		want      string
		wantErr   []string // what the error's text holds
	}{
		{name: "flag before all", flag: flagFile, env: envFile, want: flagFile},
		{name: "variable before cache", env: envFile, want: envFile},
		{name: "cache", want: cacheFile},
		{name: "a folder as flag", flag: filepath.Dir(envFile), want: envFile},
		{name: "a folder as variable", env: filepath.Dir(envFile), want: envFile},
		{name: "flag names nothing", flag: missing, env: envFile, wantErr: []string{"--onnxruntime", missing}},
		{name: "variable names nothing", env: missing, wantErr: []string{EnvLibrary, missing}},
		{name: "flag names an empty folder", flag: empty, wantErr: []string{"--onnxruntime", empty, name}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(EnvCache, filepath.Join(dir, "cache"))
			t.Setenv(EnvLibrary, tt.env)
			got, err := FindLibrary(tt.flag)
			if tt.wantErr != nil {
				if err == nil {
					t.Fatalf("found %s, want an error", got)
				}
				for _, w := range tt.wantErr {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("the error %q does not name %s", err, w)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("found %s, want %s", got, tt.want)
			}
		})
	}
}

func TestSearchGoesFromNearToFar(t *testing.T) {
	names := libraryNames(runtime.GOOS)
	for _, tt := range []struct {
		name  string
		files []string // relative to the root of the search
		want  string   // "" if none is to be found
	}{
		{name: "none", want: ""},
		{name: "beside the executable", files: []string{"bin/" + names[0], "lib/" + names[0]}, want: "bin/" + names[0]},
		{name: "in the lib folder beside the executable's", files: []string{"lib/" + names[0], "sys/" + names[0]}, want: "lib/" + names[0]},
		{name: "the system, by its own name", files: []string{"sys/" + names[2]}, want: "sys/" + names[2]},
		{name: "the pinned name before a bare one", files: []string{"sys/" + names[2], "sys/" + names[0]}, want: "sys/" + names[0]},
		{name: "a folder by the library's name is none", files: []string{"bin/" + names[0] + "/x"}, want: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for _, f := range tt.files {
				touch(t, filepath.Join(root, filepath.FromSlash(f)))
			}
			dirs := append(executableDirs(filepath.Join(root, "bin", "anomaly")), filepath.Join(root, "sys"))
			got, err := firstLibrary(dirs)
			if tt.want == "" {
				if !errors.Is(err, ErrNoLibrary) {
					t.Fatalf("got %q, %v, want ErrNoLibrary", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := filepath.Join(root, filepath.FromSlash(tt.want)); got != want {
				t.Errorf("found %s, want %s", got, want)
			}
		})
	}
}

func TestMissingLibrarySaysWhatBringsIt(t *testing.T) {
	for _, want := range []string{"make runtime", "--onnxruntime", EnvLibrary} {
		if !strings.Contains(ErrNoLibrary.Error(), want) {
			t.Errorf("%q does not say %s", ErrNoLibrary, want)
		}
	}
	if strings.Contains(ErrNoLibrary.Error(), "\n") {
		t.Errorf("%q is more than a line", ErrNoLibrary)
	}
}

func TestSystemPlacesGoWithThePlatform(t *testing.T) {
	for _, tt := range []struct{ os, arch, want string }{
		{"linux", "amd64", "/usr/lib/x86_64-linux-gnu"},
		{"linux", "arm64", "/usr/lib/aarch64-linux-gnu"},
		{"darwin", "arm64", "/opt/homebrew/lib"},
	} {
		if got := strings.Join(systemDirs(tt.os, tt.arch), ":"); !strings.Contains(got, tt.want) {
			t.Errorf("%s/%s looks in %s, not in %s", tt.os, tt.arch, got, tt.want)
		}
	}
}

func TestForeignLibraryIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), libraryNames(runtime.GOOS)[0])
	if err := os.WriteFile(path, []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := VerifyLibrary(path)
	if !errors.Is(err, ErrLibraryMismatch) {
		t.Fatalf("got %v, want ErrLibraryMismatch", err)
	}
	if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "make runtime") {
		t.Errorf("the error %q names neither the file nor what to do", err)
	}
	if err := VerifyLibrary(path + ".absent"); err == nil || errors.Is(err, ErrLibraryMismatch) {
		t.Errorf("an absent file gives %v", err)
	}
}

func TestCachedLibraryIsThePinnedOne(t *testing.T) {
	dir, err := CacheDir()
	if err != nil {
		t.Skip(err)
	}
	path, err := firstLibrary([]string{dir})
	if err != nil {
		t.Skip(`no library in the cache: "make runtime" brings it`)
	}
	if err := VerifyLibrary(path); err != nil {
		t.Error(err)
	}
}

func TestTableThatCannotBeReadPanics(t *testing.T) {
	for _, table := range []string{"", "# nothing\nos\tarch\n", "os\nlinux\tamd64\n"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was read", table)
				}
			}()
			parsePins(table)
		}()
	}
}

package ort

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// touch creates an empty file and its folders, and returns the path.
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

func TestCacheDir_FollowsItsVariable(t *testing.T) {
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

func TestFindLibrary_PrefersFlagThenVariableThenCache(t *testing.T) {
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
		wantErr   []string // parts of the error's text
	}{
		{name: "flag", flag: flagFile, env: envFile, want: flagFile},
		{name: "variable", env: envFile, want: envFile},
		{name: "cache", want: cacheFile},
		{name: "flag names a folder", flag: filepath.Dir(envFile), want: envFile},
		{name: "variable names a folder", env: filepath.Dir(envFile), want: envFile},
		{name: "flag names a missing file", flag: missing, env: envFile, wantErr: []string{"--onnxruntime", missing}},
		{name: "variable names a missing file", env: missing, wantErr: []string{EnvLibrary, missing}},
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

func TestFirstLibrary_ReturnsTheFirstInOrder(t *testing.T) {
	names := libraryNames(runtime.GOOS)
	for _, tt := range []struct {
		name  string
		files []string // relative to the temporary folder
		want  string   // "" for ErrNoLibrary
	}{
		{name: "none", want: ""},
		{name: "next to the executable", files: []string{"bin/" + names[0], "lib/" + names[0]}, want: "bin/" + names[0]},
		{name: "in the lib folder", files: []string{"lib/" + names[0], "sys/" + names[0]}, want: "lib/" + names[0]},
		{name: "the system, without a version", files: []string{"sys/" + names[2]}, want: "sys/" + names[2]},
		{name: "the pinned version first", files: []string{"sys/" + names[2], "sys/" + names[0]}, want: "sys/" + names[0]},
		{name: "a folder with the library's name", files: []string{"bin/" + names[0] + "/x"}, want: ""},
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

func TestErrNoLibrary_NamesTheRemedies(t *testing.T) {
	for _, want := range []string{"make runtime", "--onnxruntime", EnvLibrary} {
		if !strings.Contains(ErrNoLibrary.Error(), want) {
			t.Errorf("%q does not name %s", ErrNoLibrary, want)
		}
	}
	if strings.Contains(ErrNoLibrary.Error(), "\n") {
		t.Errorf("%q has more than one line", ErrNoLibrary)
	}
}

func TestSystemDirs_DependOnThePlatform(t *testing.T) {
	for _, tt := range []struct{ os, arch, want string }{
		{"linux", "amd64", "/usr/lib/x86_64-linux-gnu"},
		{"linux", "arm64", "/usr/lib/aarch64-linux-gnu"},
		{"darwin", "arm64", "/opt/homebrew/lib"},
	} {
		if got := strings.Join(systemDirs(tt.os, tt.arch), ":"); !strings.Contains(got, tt.want) {
			t.Errorf("%s/%s: %s lacks %s", tt.os, tt.arch, got, tt.want)
		}
	}
}

func TestParseVersion_PanicsOnAnInvalidTable(t *testing.T) {
	for _, table := range []string{"", "# nothing\nos\tarch\n", "os\nlinux\tamd64\n"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was accepted", table)
				}
			}()
			parseVersion(table)
		}()
	}
}

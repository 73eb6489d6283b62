package ort

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// EnvLibrary names the environment variable that holds the path of ONNX
	// Runtime's shared library, or of the folder it lies in.
	EnvLibrary = "ANOMALY_ONNXRUNTIME"

	// EnvCache names the environment variable that replaces the project's folder
	// in the user's cache. It holds the folder above onnxruntime/<version>.
	EnvCache = "ANOMALY_CACHE"
)

var (
	// ErrNoLibrary is returned when ONNX Runtime's library is in none of the places
	// that FindLibrary looks in. Its text says what brings it.
	ErrNoLibrary = errors.New("the ONNX Runtime library was not found: run \"make runtime\" to bring it, or name the file with --onnxruntime or " + EnvLibrary)

	// ErrLibraryMismatch is returned when a library is not byte for byte one that is
	// pinned for this platform.
	ErrLibraryMismatch = errors.New("the ONNX Runtime library is not the pinned one")
)

//go:embed library.tsv
var libraryTable string

// pin is one row of library.tsv: one file that a package of a registry carries.
type pin struct {
	os, arch string // as in GOOS and GOARCH
	client   string // npm or pip
	pkg      string
	version  string
	file     string // within the package
	name     string // once installed
	sha256   string
}

// shared reports whether the row is the library itself, not a provider beside it.
func (p pin) shared() bool { return !strings.Contains(p.name, "_providers_") }

// pins is the whole table.
var pins = parsePins(libraryTable)

// parsePins reads library.tsv. The table is part of the program, so one that can't be
// read is a fault of the program and panics; a test reads it before any user does.
func parsePins(table string) []pin {
	var rows []pin
	header := true
	for n, line := range strings.Split(table, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if header {
			header = false
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 8 {
			panic(fmt.Sprintf("ort: library.tsv: line %d has %d columns, want 8", n+1, len(f)))
		}
		rows = append(rows, pin{os: f[0], arch: f[1], client: f[2], pkg: f[3], version: f[4], file: f[5], name: f[6], sha256: f[7]})
	}
	if len(rows) == 0 {
		panic("ort: library.tsv holds no library")
	}
	return rows
}

// LibraryVersion returns the version of ONNX Runtime that is pinned.
func LibraryVersion() string { return pins[0].version }

// CacheDir returns the folder that "make runtime" puts the library in: onnxruntime/<version>
// in the project's folder of the user's cache, or in the folder that ANOMALY_CACHE names.
func CacheDir() (string, error) {
	root := os.Getenv(EnvCache)
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the user's cache folder: %w", err)
		}
		root = filepath.Join(user, "deepmed-anomaly")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("find the cache folder %s: %w", root, err)
	}
	return filepath.Join(abs, "onnxruntime", LibraryVersion()), nil
}

// FindLibrary returns the path of ONNX Runtime's shared library. It looks, in this order,
// at the flag's value, the variable ANOMALY_ONNXRUNTIME, the project's cache, the
// executable's folder and the lib folder beside it, and the system's usual places.
//
// The flag and the variable may name the file or its folder. They are orders, not hints:
// where one is set and no library is there, the error says so and nothing else is tried.
// Where none is anywhere, the error is ErrNoLibrary.
func FindLibrary(flag string) (string, error) {
	if flag != "" {
		return namedLibrary("--onnxruntime", flag)
	}
	if v := os.Getenv(EnvLibrary); v != "" {
		return namedLibrary(EnvLibrary, v)
	}
	return firstLibrary(searchDirs())
}

// searchDirs lists the folders where a library may lie that nobody named.
func searchDirs() []string {
	var dirs []string
	// Without a home there is no cache; the other places are still worth a look.
	if cache, err := CacheDir(); err == nil {
		dirs = append(dirs, cache)
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dirs = append(dirs, executableDirs(exe)...)
	}
	return append(dirs, systemDirs(runtime.GOOS, runtime.GOARCH)...)
}

// executableDirs lists the folders that go with an installed executable.
func executableDirs(exe string) []string {
	dir := filepath.Dir(exe)
	return []string{dir, filepath.Join(filepath.Dir(dir), "lib")}
}

// systemDirs lists where a system keeps shared libraries.
func systemDirs(goos, goarch string) []string {
	if goos == "darwin" {
		return []string{"/opt/homebrew/lib", "/usr/local/lib", "/opt/onnxruntime/lib"}
	}
	dirs := []string{"/usr/local/lib", "/usr/lib"}
	switch goarch {
	case "amd64":
		dirs = append(dirs, "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
	case "arm64":
		dirs = append(dirs, "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
	}
	return append(dirs, "/opt/onnxruntime/lib")
}

// libraryNames lists the names that the library goes by in a folder, the pinned one first.
func libraryNames(goos string) []string {
	version := LibraryVersion()
	if goos == "darwin" {
		return []string{"libonnxruntime." + version + ".dylib", "libonnxruntime.1.dylib", "libonnxruntime.dylib"}
	}
	return []string{"libonnxruntime.so." + version, "libonnxruntime.so.1", "libonnxruntime.so"}
}

// namedLibrary returns the library at a path that the user gave by the flag or variable source.
func namedLibrary(source, path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s names %s, and there is no such file: name ONNX Runtime's library, or run \"make runtime\" and leave it out", source, path)
	case err != nil:
		return "", fmt.Errorf("look at the library that %s names: %w", source, err)
	case !info.IsDir():
		return path, nil
	}
	found, err := firstLibrary([]string{path})
	if err != nil {
		return "", fmt.Errorf("%s names the folder %s, and there is no %s in it", source, path, libraryNames(runtime.GOOS)[0])
	}
	return found, nil
}

// firstLibrary returns the first library that lies in one of the folders, or ErrNoLibrary.
func firstLibrary(dirs []string) (string, error) {
	for _, dir := range dirs {
		for _, name := range libraryNames(runtime.GOOS) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", ErrNoLibrary
}

// VerifyLibrary checks that the file at path is, byte for byte, a library that is pinned
// for this platform. It reads the whole file, tens of megabytes, so it is for when the
// library is brought and for tests, not for every start. Another file's error wraps
// ErrLibraryMismatch.
func VerifyLibrary(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify the ONNX Runtime library: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("verify the ONNX Runtime library %s: %w", path, err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	for _, p := range pins {
		if p.os == runtime.GOOS && p.arch == runtime.GOARCH && p.shared() && p.sha256 == sum {
			return nil
		}
	}
	return fmt.Errorf("%w: %s has the SHA-256 %s, which is not pinned for %s/%s; delete it and run \"make runtime\"",
		ErrLibraryMismatch, path, sum, runtime.GOOS, runtime.GOARCH)
}

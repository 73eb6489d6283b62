package ort

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	// EnvLibrary is the environment variable with the path of ONNX Runtime's shared
	// library or of its folder.
	EnvLibrary = "ANOMALY_ONNXRUNTIME"

	// EnvCache is the environment variable that replaces the project's folder in the
	// user's cache. The library is in its subfolder onnxruntime/<version>.
	EnvCache = "ANOMALY_CACHE"
)

// ErrNoLibrary is returned when FindLibrary finds no library. Its text names the remedy.
var ErrNoLibrary = errors.New("the ONNX Runtime library was not found: run \"make runtime\" to install it, or name the file with --onnxruntime or " + EnvLibrary)

//go:embed library.tsv
var libraryTable string

var pinnedVersion = parseVersion(libraryTable)

// parseVersion returns the version in the first row of library.tsv, which is the same in
// all rows. It panics if the table cannot be read: the table is part of the program.
func parseVersion(table string) string {
	header := true
	for line := range strings.Lines(table) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if header {
			header = false
			continue
		}
		const columns, version = 8, 4
		f := strings.Split(line, "\t")
		if len(f) != columns {
			panic(fmt.Sprintf("ort: library.tsv: a row of %d columns, want %d", len(f), columns))
		}
		return f[version]
	}
	panic("ort: library.tsv has no rows")
}

// LibraryVersion returns the pinned version of ONNX Runtime.
func LibraryVersion() string { return pinnedVersion }

// CacheDir returns the folder in which "make runtime" installs the library:
// onnxruntime/<version> in the project's folder of the user's cache, or in the folder
// of the variable EnvCache.
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

// FindLibrary returns the path of ONNX Runtime's shared library. It tries the value of the
// flag, the variable EnvLibrary, CacheDir, the executable's folder, the lib folder next
// to that folder, and the system's library folders, in this order.
//
// The flag and the variable may name the file or its folder. If one of them is set and
// has no library, FindLibrary returns an error and tries nothing else. ErrNoLibrary is
// returned when no folder has the library.
func FindLibrary(flag string) (string, error) {
	if flag != "" {
		return namedLibrary("--onnxruntime", flag)
	}
	if v := os.Getenv(EnvLibrary); v != "" {
		return namedLibrary(EnvLibrary, v)
	}
	return firstLibrary(searchDirs())
}

// searchDirs returns the folders to search if neither flag nor variable is set.
func searchDirs() []string {
	var dirs []string
	// Without a home folder there is no cache, and the other folders are searched.
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

// executableDirs returns the library folders of an installed executable.
func executableDirs(exe string) []string {
	dir := filepath.Dir(exe)
	return []string{dir, filepath.Join(filepath.Dir(dir), "lib")}
}

// systemDirs returns the folders of shared libraries of a system.
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

// libraryNames returns the file names of the library, the pinned version first.
func libraryNames(goos string) []string {
	version := LibraryVersion()
	if goos == "darwin" {
		return []string{"libonnxruntime." + version + ".dylib", "libonnxruntime.1.dylib", "libonnxruntime.dylib"}
	}
	return []string{"libonnxruntime.so." + version, "libonnxruntime.so.1", "libonnxruntime.so"}
}

// namedLibrary returns the library at the path of source, a flag or a variable.
func namedLibrary(source, path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s names %s, which does not exist: name ONNX Runtime's library, or run \"make runtime\" and omit it", source, path)
	case err != nil:
		return "", fmt.Errorf("check the library that %s names: %w", source, err)
	case !info.IsDir():
		return path, nil
	}
	found, err := firstLibrary([]string{path})
	if err != nil {
		return "", fmt.Errorf("%s names the folder %s, which has no %s", source, path, libraryNames(runtime.GOOS)[0])
	}
	return found, nil
}

// firstLibrary returns the first library in the folders, or ErrNoLibrary.
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

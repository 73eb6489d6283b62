package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrNotRegular is returned, wrapped, for a file that is not a regular file. Reading one
// may block forever or never end.
var ErrNotRegular = errors.New("not a regular file")

// OpenRegular opens a regular file for reading. It follows links and does not block on a
// named pipe. It returns ErrNotRegular, wrapped, for a folder, a pipe, a socket and a
// device.
func OpenRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) { // a socket
		return nil, NotRegular(fs.ModeSocket)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = NotRegular(info.Mode())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// NotRegular returns ErrNotRegular, wrapped with the kind of file, or nil for the mode of
// a regular file.
func NotRegular(mode fs.FileMode) error {
	kind := "device"
	switch {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		kind = "folder"
	case mode&fs.ModeSymlink != 0:
		kind = "link"
	case mode&fs.ModeNamedPipe != 0:
		kind = "named pipe"
	case mode&fs.ModeSocket != 0:
		kind = "socket"
	}
	return fmt.Errorf("it is a %s, %w", kind, ErrNotRegular)
}

// CheckWritable returns an error if WriteAtomic cannot create a file at path, for
// example because of permissions. It leaves nothing behind.
func CheckWritable(path string) error {
	dir := filepath.Dir(path)
	for {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return &fs.PathError{Op: "create", Path: path, Err: fmt.Errorf("%s is not a folder", dir)}
		}
		if err == nil {
			break
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || up == dir {
			return err
		}
		dir = up
	}
	probe, err := os.CreateTemp(dir, TemporaryPrefix+"*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

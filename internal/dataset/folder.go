package dataset

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
)

// maxHeads bounds the files of a data set that are opened to find out what they are.
const maxHeads = 20_000

// systemFolders are folders that operating systems and file servers create, with copies
// of images.
var systemFolders = []string{"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle"}

// hidden reports whether any part of a path begins with a dot or is a system folder.
func hidden(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") && part != "." && part != ".." {
			return true
		}
		for _, folder := range systemFolders {
			if strings.EqualFold(part, folder) {
				return true
			}
		}
	}
	return false
}

// File is an image in a folder, or something that was passed over.
type File struct {
	// Path is the path of the file, below the folder's own path.
	Path string
	// Reason is why the file is not read; empty for an image to be read.
	Reason string
	// Image reports whether the file is an image, or a folder that may have some.
	Image bool

	name string // relative to the folder, with slashes
	yaml bool
}

// Images returns the images in a folder and its subfolders, in the order of their names,
// and what else is worth naming: images of formats that are not read, archives, videos,
// folders that cannot be read, pipes and devices. Hidden files are left out. All commands
// decide by it, and OpenZip by the same rule, which files are images: by the name, or by
// the first bytes if the name does not decide. It returns an error if the folder itself
// cannot be read.
func Images(folder string) ([]File, error) {
	all, err := listFolder(folder, 0)
	images := all[:0]
	for _, f := range all {
		if !f.yaml {
			images = append(images, f)
		}
	}
	return images, err
}

// lister lists a folder.
type lister struct {
	root  string
	limit int // on files; 0 for none
	files []File
	heads int
}

// listFolder returns the images, the YAML files and what is passed over. It returns
// ErrTooLarge for more than limit of them; 0 means no limit.
func listFolder(root string, limit int) ([]File, error) {
	l := &lister{root: root, limit: limit}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	err = l.folder("", entries)
	return l.files, err
}

func (l *lister) add(f File) error {
	if l.limit > 0 && len(l.files) >= l.limit {
		return fmt.Errorf("%w: more than %d files in the folder", ErrTooLarge, l.limit)
	}
	f.Path = filepath.Join(l.root, filepath.FromSlash(f.name))
	l.files = append(l.files, f)
	return nil
}

// folder adds the files in a folder. It does not follow links to folders, which may form
// a circle.
func (l *lister) folder(name string, entries []fs.DirEntry) error {
	for _, e := range entries {
		name := path.Join(name, e.Name())
		if hidden(e.Name()) {
			continue
		}
		full := filepath.Join(l.root, filepath.FromSlash(name))
		var err error
		if e.IsDir() {
			if entries, readErr := os.ReadDir(full); readErr != nil {
				err = l.add(File{name: name, Reason: "the folder cannot be read: " + withoutPath(readErr).Error(), Image: true})
			} else {
				err = l.folder(name, entries)
			}
		} else {
			err = l.file(name, full, e.Type())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file adds a file unless it is not worth a word.
func (l *lister) file(name, full string, mode fs.FileMode) error {
	c := classify(name)
	if c == otherFile {
		return nil
	}
	if mode&fs.ModeSymlink != 0 {
		info, err := os.Stat(full)
		switch {
		case err != nil && c == imageFile:
			return l.add(File{name: name, Reason: "it is a link to a file that cannot be read: " + withoutPath(err).Error(), Image: true})
		case err != nil:
			return nil
		case info.IsDir():
			return l.add(File{name: name, Reason: "it is a link to a folder, which is not followed: give that folder itself"})
		}
		mode = info.Mode()
	}
	if err := files.NotRegular(mode); err != nil {
		return l.add(File{name: name, Reason: err.Error(), Image: c == imageFile})
	}
	switch c {
	case imageFile:
		return l.add(File{name: name, Image: true})
	case yamlFile:
		return l.add(File{name: name, yaml: true})
	}
	if l.heads++; l.heads > maxHeads {
		return nil
	}
	k, err := kindOfContent(name, func() (io.ReadCloser, error) { return files.OpenRegular(full) })
	if err != nil {
		return l.add(File{name: name, Reason: withoutPath(err).Error()})
	}
	if k == noImage {
		return nil
	}
	return l.add(File{name: name, Reason: k.refusal, Image: k.image})
}

// ImageFile reports whether a file is an image by its name or its first bytes, whether
// or not its format is read.
func ImageFile(path string) bool {
	if IsImage(path) {
		return true
	}
	k, err := kindOfFile(path)
	return err == nil && k.image
}

// kindOfFile returns the kind of a file with a name that does not decide it.
func kindOfFile(path string) (kind, error) {
	if classify(filepath.ToSlash(path)) != unclearFile {
		return noImage, nil
	}
	return kindOfContent(path, func() (io.ReadCloser, error) { return files.OpenRegular(path) })
}

// kindOfContent returns the kind of a file by its first bytes.
func kindOfContent(name string, open func() (io.ReadCloser, error)) (kind, error) {
	f, err := open()
	if err != nil {
		return noImage, err
	}
	defer f.Close()
	head := make([]byte, imagefile.SniffBytes)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return noImage, err
	}
	return kindOf(name, head[:n]), nil
}

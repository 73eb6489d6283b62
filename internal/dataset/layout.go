package dataset

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// maxLayoutDepth bounds the folders of a path in which a layout is searched.
const maxLayoutDepth = 8

// maxNamedFolders bounds the folders that an error names.
const maxNamedFolders = 5

// The names of folders in the layouts of public data sets: MVTec AD, MVTec AD 2, MVTec
// LOCO, BTAD, VisA.
var (
	trainFolder  = regexp.MustCompile(`(?i)^train(ing)?$`)
	testFolder   = regexp.MustCompile(`(?i)^test(s|ing|_.*)?$`)
	truthFolder  = regexp.MustCompile(`(?i)^ground[ _-]?truth$`)
	normalFolder = regexp.MustCompile(`(?i)^(good|normal|ok)s?([^a-z].*)?$`)
)

// folderNode is a folder with images, below it or in it.
type folderNode struct {
	path     string
	children map[string]*folderNode
}

// child returns the first child, by name, that matches.
func (n *folderNode) child(name *regexp.Regexp) *folderNode {
	for _, key := range slices.Sorted(maps.Keys(n.children)) {
		if name.MatchString(key) {
			return n.children[key]
		}
	}
	return nil
}

// walk calls f for the folder and those below it, until f returns an error.
func (n *folderNode) walk(f func(*folderNode) error) error {
	if err := f(n); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(n.children)) {
		if err := n.children[key].walk(f); err != nil {
			return err
		}
	}
	return nil
}

// folders returns the tree of folders with images.
func (s *Source) folders() *folderNode {
	root := &folderNode{path: "."}
	for _, e := range s.entries {
		if e.yaml {
			continue
		}
		at, parts := root, strings.Split(path.Dir(cleaned(e.name)), "/")
		for _, part := range parts[:min(len(parts), maxLayoutDepth)] {
			if part == "." {
				continue
			}
			next := at.children[part]
			if next == nil {
				next = &folderNode{path: path.Join(at.path, part)}
				if at.children == nil {
					at.children = map[string]*folderNode{}
				}
				at.children[part] = next
			}
			at = next
		}
	}
	return root
}

// cleaned returns a name without a slash at its beginning and without empty parts.
func cleaned(name string) string { return path.Clean(strings.TrimLeft(name, "/")) }

// restrict restricts the images of a data set in the layout of an evaluation to those of
// train/good, or of train if that has no folder of normal images, and adds a warning. It
// returns ErrLayout, wrapped, if folders show in another way that there are images of
// defects.
func (s *Source) restrict() error {
	root := s.folders()
	var layouts []*folderNode
	_ = root.walk(func(n *folderNode) error {
		if n.child(trainFolder) != nil && (n.child(testFolder) != nil || n.child(truthFolder) != nil) {
			layouts = append(layouts, n)
		}
		return nil
	})
	switch len(layouts) {
	case 0:
		return root.walk(checkNormal)
	case 1:
	default:
		return fmt.Errorf("%w: several folders have train and test (%s and others): give one of them", ErrLayout, shortened(layouts[0].path))
	}
	train := layouts[0].child(trainFolder)
	if normal := train.child(normalFolder); normal != nil {
		train = normal
	}
	inside := func(name string) bool { return strings.HasPrefix(cleaned(name), train.path+"/") }
	var kept []entry
	images, left := 0, 0
	for _, e := range s.entries {
		switch {
		case e.yaml:
			kept = append(kept, e)
		case inside(e.name):
			kept = append(kept, e)
			images++
		default:
			left++
		}
	}
	var passedOver passedOverFiles
	for i, name := range s.passedOver.names {
		if inside(name) {
			passedOver.add(name, s.passedOver.reasons[i])
		}
	}
	s.entries, s.passedOver, s.evaluation = kept, passedOver, layouts[0].path
	s.warnings = append(s.warnings, fmt.Sprintf("the data set has the layout of an evaluation: only the %d images in %s are used, the %d others (test images and masks) are left out",
		images, shortened(train.path), left))
	return nil
}

// checkNormal returns ErrLayout, wrapped, if a folder has ground truth in it, or a folder
// of normal images beside others.
func checkNormal(n *folderNode) error {
	if truth := n.child(truthFolder); truth != nil {
		return fmt.Errorf("%w: %s has masks of defects: give only the folder of the normal images", ErrLayout, shortened(truth.path))
	}
	normal := n.child(normalFolder)
	if normal == nil {
		return nil
	}
	var others []string
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		if !normalFolder.MatchString(name) {
			others = append(others, shortened(name))
		}
	}
	if len(others) == 0 {
		return nil
	}
	if len(others) > maxNamedFolders {
		others = append(others[:maxNamedFolders], "…")
	}
	return fmt.Errorf("%w: beside the folder %s there is %s: give only the folder of the normal images, or all as train/good and test/<defect>",
		ErrLayout, shortened(normal.path), strings.Join(others, ", "))
}

// CheckHeldOut returns ErrLayout, wrapped, if the images are those that a training takes
// from a data set in the layout of an evaluation. A calibration needs other ones.
func (s *Source) CheckHeldOut() error {
	if s.evaluation == "" {
		return nil
	}
	folder := path.Join(cmp.Or(s.evaluation, "."), "test/good")
	return fmt.Errorf("%w: it has the layout of an evaluation: give the folder of normal images that the model was not trained on, such as %s",
		ErrLayout, shortened(folder))
}

package hostile

import (
	"fmt"
	"slices"
)

// Reason is why a file must be refused: one of the errors of models.Read.
type Reason int

// The reasons, each named as the error of package models is.
const (
	Format Reason = iota
	Unsafe
	TooLarge
	Architecture
	Metadata
)

// Class is what kind of file means harm.
type Class string

// The classes of files.
const (
	Pickle Class = "pickle"
	Zip    Class = "zip"
	ONNX   Class = "ONNX"
)

// File is a model file that must be refused.
type File struct {
	Name  string // says what is wrong with it
	Class Class
	Want  Reason
	Data  []byte
	// Pickle is the pickle in Data when its class is Pickle.
	Pickle []byte
	// RunsCode says that Python's own unpickler, given Pickle, makes a file at
	// the canary's path. Where that takes an extension code, it is ExtensionCode
	// and stands for os.system.
	RunsCode bool
}

// Models are all the files. Those that run code would make a file at the path
// canary, which must not hold a quote.
func Models(canary string) []File {
	files := slices.Concat(pickles(canary), zips(canary), graphs())
	seen := map[string]bool{}
	for _, f := range files {
		if name := fmt.Sprint(f.Class, f.Name); seen[name] {
			panic("hostile: two files named " + name)
		} else {
			seen[name] = true
		}
	}
	return files
}

package hostile

import (
	"fmt"
	"slices"
)

// Reason identifies the error that models.Read must return for a file.
type Reason int

// The reasons. Each has the name of the error in package models, without "Err".
const (
	Format Reason = iota
	Unsafe
	TooLarge
	Architecture
	Metadata
)

// Class is the format that an attack uses.
type Class string

// The classes.
const (
	Pickle Class = "pickle"
	Zip    Class = "zip"
	ONNX   Class = "ONNX"
)

// File is a model file that a reader must reject.
type File struct {
	Name  string // describes the defect or attack
	Class Class
	Want  Reason
	Data  []byte
	// Pickle is the pickle in Data when Class is Pickle.
	Pickle []byte
	// RunsCode reports whether Python's unpickler, given Pickle, creates the canary
	// file. Some pickles require that os.system is registered as ExtensionCode.
	RunsCode bool
}

// Models returns all files. Those that run code try to create the file canary, whose
// path must not contain a quote.
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

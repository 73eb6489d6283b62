package ort

// The names for tests in package ort_test.
var (
	LibraryNames = libraryNames
	FirstLibrary = firstLibrary
)

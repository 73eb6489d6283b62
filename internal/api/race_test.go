//go:build race

package api

// raceFactor is the factor by which the race detector increases a program's memory.
const raceFactor = 6

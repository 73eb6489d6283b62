//go:build race

package api

// raceFactor is how many times the memory the race detector makes of a program's.
const raceFactor = 6

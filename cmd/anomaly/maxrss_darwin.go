package main

// maxrssUnit is the unit of Rusage.Maxrss in bytes: 1 on macOS.
const maxrssUnit = 1

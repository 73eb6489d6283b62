package main

// maxrssUnit is the unit of Rusage.Maxrss in bytes: 1 KiB on Linux.
const maxrssUnit = 1 << 10

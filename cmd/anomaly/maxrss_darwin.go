package main

// maxrssUnit is what the system counts memory in: macOS in bytes.
const maxrssUnit = 1

package main

// maxrssUnit is what the system counts memory in: Linux in kilobytes.
const maxrssUnit = 1 << 10

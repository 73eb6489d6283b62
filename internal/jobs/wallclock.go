package jobs

import "time"

// The wall clock may be set at any moment. This file is the only one of the package that
// reads it: for the times that users read, and for the age of jobs of an earlier process.

// wall returns the time of the wall clock. Tests replace it.
var wall = time.Now

// wallTime returns the time of the wall clock in UTC, but none before a time that was
// reported already: a job must not end before it has started.
func wallTime(notBefore time.Time) time.Time {
	if t := wall().UTC(); t.After(notBefore) {
		return t
	}
	return notBefore
}

// wallAge returns how long ago a time of the wall clock was; 0 if it is in the future.
func wallAge(t time.Time) time.Duration { return max(0, wall().UTC().Sub(t)) }

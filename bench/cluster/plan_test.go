package main

import (
	"errors"
	"testing"
)

func TestSmallest_FindsTheLeastNumberThatMeetsTheGoal(t *testing.T) {
	for _, c := range []struct{ low, high, most, least, loosely int }{
		{1, 2, 100, 2, 2},
		{1, 2, 100, 3, 3},
		{1, 2, 100, 31, 31},
		{9, 11, 100, 10, 10},
		{1, 2, 2048, 700, 721},
		{690, 720, 2048, 700, 721},
		{690, 720, 2048, 800, 824},
	} {
		asked := map[int]bool{}
		got, err := smallest(c.low, c.high, c.most, func(n int) (bool, error) {
			if asked[n] {
				t.Errorf("%+v: %d is simulated twice", c, n)
			}
			asked[n] = true
			return n >= c.least, nil
		})
		if err != nil || got < c.least || got > c.loosely || !asked[got] {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

func TestSmallest_EndsAboveTheLargestNumber(t *testing.T) {
	largest := 0
	got, err := smallest(1, 2, 100, func(n int) (bool, error) {
		largest = max(largest, n)
		return false, nil
	})
	if err != nil || got <= 100 || largest > 100 {
		t.Errorf("%d, %v, and %d is simulated", got, err, largest)
	}
}

func TestSmallest_ReturnsErrors(t *testing.T) {
	failed := errors.New("failed")
	for _, at := range []int{2, 8, 6} {
		_, err := smallest(1, 2, 100, func(n int) (bool, error) {
			if n == at {
				return false, failed
			}
			return n >= 7, nil
		})
		if !errors.Is(err, failed) {
			t.Errorf("an error at %d: %v", at, err)
		}
	}
}

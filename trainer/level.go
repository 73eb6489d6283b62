package trainer

import (
	"errors"
	"fmt"
)

// ErrLevel is returned when a level is not between 1 and 5. Clients may match its text,
// which is the Python service's.
var ErrLevel = errors.New("Level must be between 1 and 5")

// DefaultLevel is the level used when none is given.
const DefaultLevel = 3

// Level is a preset of the length and learning rate of a training. Epochs, batch sizes
// and learning rates are the Python service's.
type Level struct {
	Number       int
	Epochs       int
	BatchSize    int
	LearningRate float64
	// HeadSteps is the number of training steps of each defect head; 0 means no heads.
	HeadSteps int
}

var levels = []Level{
	{1, 5, 16, 1e-3, 0},
	{2, 10, 16, 1e-3, 250},
	{3, 30, 16, 1e-3, 400},
	{4, 50, 8, 5e-4, 600},
	{5, 100, 8, 1e-4, 800},
}

// LevelOf returns level n. It returns ErrLevel when n is not between 1 and 5.
func LevelOf(n int) (Level, error) {
	if n < 1 || n > len(levels) {
		return Level{}, fmt.Errorf("%w, got %d", ErrLevel, n)
	}
	return levels[n-1], nil
}

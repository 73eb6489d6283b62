package trainer

import (
	"errors"
	"fmt"
)

// ErrLevel is returned when a level is not one of 1 to 5. Its text is the
// Python service's, which clients may match.
var ErrLevel = errors.New("Level must be between 1 and 5")

// DefaultLevel is the level of a training that names none.
const DefaultLevel = 3

// Level is a preset of how long and how finely to train. Epochs, batch
// size and learning rate are the Python service's.
type Level struct {
	Number       int
	Epochs       int
	BatchSize    int
	LearningRate float64
	// HeadSteps is how many steps each head is trained for on synthetic anomalies
	// beside the network; 0 is for none.
	HeadSteps int
}

var levels = []Level{
	{1, 5, 16, 1e-3, 0},
	{2, 10, 16, 1e-3, 250},
	{3, 30, 16, 1e-3, 400},
	{4, 50, 8, 5e-4, 600},
	{5, 100, 8, 1e-4, 800},
}

// Levels lists the presets from the quickest to the most thorough.
func Levels() []Level { return append([]Level(nil), levels...) }

// LevelOf returns the preset of that number, or ErrLevel.
func LevelOf(n int) (Level, error) {
	if n < 1 || n > len(levels) {
		return Level{}, fmt.Errorf("%w, got %d", ErrLevel, n)
	}
	return levels[n-1], nil
}

package trainer

import "github.com/deepmed/anomaly/internal/decision"

// Stage is a part of a training, as text for a person to read.
type Stage = decision.Stage

// The stages of a training, in their order. A training skips some: heads are trained
// at level 2 and above, and detectability is measured only without MaxTime.
const (
	StageReadingImages          Stage = "reading images"
	StageExtractingFeatures           = decision.StageExtractingFeatures
	StageTrainingHeads                = decision.StageTrainingHeads
	StageScoringTiles                 = decision.StageScoringTiles
	StageMeasuringDetectability       = decision.StageMeasuringDetectability
	StageEpochs                 Stage = "training the autoencoder"
	StageCalibrating            Stage = "calibrating"
)

// begin reports that a stage begins.
func (o Options) begin(s Stage) {
	if o.Stage != nil {
		o.Stage(s)
	}
}

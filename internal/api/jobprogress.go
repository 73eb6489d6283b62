package api

import (
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/trainer"
)

// stageStart is the fraction of a training at which a stage begins: an estimate, which
// fits trainings of a few hundred images.
var stageStart = map[trainer.Stage]float64{
	trainer.StageReadingImages:          0,
	trainer.StageExtractingFeatures:     0.05,
	trainer.StageTrainingHeads:          0.2,
	trainer.StageScoringTiles:           0.3,
	trainer.StageMeasuringDetectability: 0.5,
	trainer.StageEpochs:                 0.55,
	trainer.StageCalibrating:            0.95,
}

// progressSink receives the progress of a training. It does not wait.
type progressSink interface {
	Progress(p jobs.Progress, losses []float64)
}

// jobProgress converts the stages and epochs of a training into the progress of a job.
type jobProgress struct {
	sink   progressSink
	last   jobs.Progress
	losses []float64
}

func (p *jobProgress) stage(stage trainer.Stage) {
	p.last.Phase = string(stage)
	p.last.Fraction = max(p.last.Fraction, stageStart[stage])
	p.last.SecondsLeft = nil
	p.sink.Progress(p.last, p.losses)
}

func (p *jobProgress) epochs(e trainer.Progress) {
	const from, to = trainer.StageEpochs, trainer.StageCalibrating
	share := float64(e.Step) / float64(max(e.Steps, 1))
	loss, left := e.Loss, e.Remaining.Seconds()
	p.last.Epoch, p.last.Epochs, p.last.Loss, p.last.SecondsLeft = e.Epoch, e.Epochs, &loss, &left
	p.losses = append(p.losses[:0], e.Losses...)
	p.last.Fraction = max(p.last.Fraction, stageStart[from]+share*(stageStart[to]-stageStart[from]))
	p.sink.Progress(p.last, p.losses)
}

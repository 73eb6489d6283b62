package inference

import (
	"context"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// FrameVerdict is the decision on one frame of a DICOM file.
type FrameVerdict struct {
	// Frame is the number of the frame, from 1.
	Frame               int     `json:"frame"`
	ReconstructionError float64 `json:"reconstruction_error"`
	MSE                 float64 `json:"mse"`
	IsAnomaly           bool    `json:"is_anomaly"`
}

// Open returns the images in a file, decoded for the model: the frames of a DICOM file, else
// one. The errors are ErrImage and ErrImageTooLarge, wrapped.
func (d *Detector) Open(image []byte, lim ImageLimits) (*imagefile.Frames, error) {
	return imagefile.OpenFrames(image, d.ImageOptions(lim))
}

// DetectFrame is like Detect for image i, from 0, of a file.
func (d *Detector) DetectFrame(ctx context.Context, f *imagefile.Frames, i int, meta *models.Metadata) (Verdict, error) {
	if d.Tiled() {
		return d.detectTiles(ctx, f, i, meta, always(scoreSession))
	}
	p, err := imagefile.PrepareSized(f.Data(), d.Size(), f.Options(i))
	if err != nil {
		return Verdict{}, err
	}
	j, err := d.score(ctx, p.Pix)
	if err != nil {
		return Verdict{}, err
	}
	j.shallow = p.Shallow
	return d.judge(j, meta)
}

// eachFrame returns the verdict of the image with the highest score, the first of equal
// ones. If there are several, the verdict has its number and the verdicts of all.
func eachFrame(f *imagefile.Frames, judge func(i int) (Verdict, error)) (Verdict, error) {
	if f.Len() == 1 {
		return judge(0)
	}
	var highest Verdict
	frames := make([]FrameVerdict, f.Len())
	for i := range frames {
		v, err := judge(i)
		if err != nil {
			return Verdict{}, err
		}
		frames[i] = FrameVerdict{i + 1, v.ReconstructionError, v.MSE, v.IsAnomaly}
		if i == 0 || v.ReconstructionError > highest.ReconstructionError {
			highest = v
			highest.Frame = i + 1
		}
	}
	highest.Frames = frames
	return highest, nil
}

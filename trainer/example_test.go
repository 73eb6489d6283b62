package trainer_test

import (
	"context"
	"fmt"
	"io"
	"log"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/trainer"
)

// Train a model on a folder of normal images and write its zip.
func Example() {
	engine, err := inference.OpenEngine(inference.EngineOptions{})
	if err != nil {
		log.Fatal(err)
	}
	images, err := trainer.OpenFolder("../testdata/tiles/train/good", trainer.DefaultLimits())
	if err != nil {
		log.Fatal(err)
	}
	model, err := trainer.Train(context.Background(), engine, images, trainer.Options{Level: 1, ImageSize: 32})
	if err != nil {
		log.Fatal(err)
	}
	if err := exporter.WriteBundle(io.Discard, model); err != nil {
		log.Fatal(err)
	}
	fmt.Println(model.Metadata.Training.Images, "images")
	// Output: 60 images
}

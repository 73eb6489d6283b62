package inference_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/models"
)

// Judge an image file with a model file.
func Example() {
	engine, err := inference.OpenEngine(inference.EngineOptions{Provider: inference.CPU})
	if err != nil {
		log.Fatal(err)
	}
	file, err := os.ReadFile("../models/testdata/earlier/bands.onnx")
	if err != nil {
		log.Fatal(err)
	}
	model, err := models.Read(file, models.DefaultLimits())
	if err != nil {
		log.Fatal(err)
	}
	detector, err := inference.NewDetector(engine, model, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer detector.Close()

	image, err := os.ReadFile("../testdata/tiles/test/crack/exp2_num_32153.jpg")
	if err != nil {
		log.Fatal(err)
	}
	verdict, err := detector.Detect(context.Background(), image, nil, inference.DefaultImageLimits())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("anomaly:", verdict.IsAnomaly)
	// Output: anomaly: true
}

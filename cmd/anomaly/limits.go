package main

import (
	"github.com/deepmed/anomaly/internal/api"
	"github.com/spf13/pflag"
)

// addLimits adds a flag for each bound on what requests may ask of the machine.
func addLimits(f *pflag.FlagSet, o *api.Options) {
	f.Int64Var(&o.BodyBytes, "max-body", o.BodyBytes, "largest request, in bytes")
	f.DurationVar(&o.ReadPause, "upload-pause", o.ReadPause, "how long an upload may stop")
	f.DurationVar(&o.DetectTime, "max-detect-time", o.DetectTime, "how long a /detect, or another request of a model, may take, its upload and its wait included; 0 for no bound")
	f.DurationVar(&o.TrainTime, "max-train-time", o.TrainTime, "how long a /train may take, its upload and its wait included; 0 for no bound")
	f.Float64Var(&o.DefaultMaxSeconds, "default-max-seconds", o.DefaultMaxSeconds, "max_seconds of a /train that sends none, for clients that give up after a fixed time; its upload and its wait count; 0 for no limit")

	f.Int64Var(&o.Models.MaxBytes, "max-model", o.Models.MaxBytes, "largest model file, in bytes")
	f.Int64Var(&o.Models.MaxParameters, "max-parameters", o.Models.MaxParameters, "most weights and biases of a model")
	f.Int64Var(&o.Models.MaxUnpacked, "max-model-unpacked", o.Models.MaxUnpacked, "most a model's zip may unpack to, in bytes")
	f.IntVar(&o.Models.MaxSide, "max-image-size", o.Models.MaxSide, "largest image_size of a model or a training, in pixels")
	f.IntVar(&o.Models.MaxNodes, "max-nodes", o.Models.MaxNodes, "most operators in a model's ONNX graph")

	f.Int64Var(&o.Images.MaxBytes, "max-image", o.Images.MaxBytes, "largest image file, in bytes")
	f.IntVar(&o.Images.MaxPixels, "max-pixels", o.Images.MaxPixels, "largest image, in pixels")

	f.IntVar(&o.Dataset.Entries, "max-files", o.Dataset.Entries, "most files in a zip of images")
	f.Int64Var(&o.Dataset.UnpackedBytes, "max-unpacked", o.Dataset.UnpackedBytes, "most a zip of images may unpack to, in bytes")
	f.Int64Var(&o.Dataset.Ratio, "max-ratio", o.Dataset.Ratio, "most times its size that a zip of images may unpack to, beyond the first 256 MiB")
	f.Int64Var(&o.Dataset.PreparedBytes, "max-dataset", o.Dataset.PreparedBytes, "most a training's prepared images may take, on disk and in memory, in bytes")
	f.Int64Var(&o.Dataset.MemoryBytes, "dataset-memory", o.Dataset.MemoryBytes, "memory for a training's prepared images, in bytes; what is beyond lies in --temp-dir")

	f.Int64Var(&o.RequestImages, "max-images", o.RequestImages, "what the images, or tensors, of one request may have together, in bytes")
	f.Int64Var(&o.UploadBytes, "upload-memory", o.UploadBytes, "memory for the uploads of all requests together, but for zips of images, which lie in --temp-dir, in bytes")
	f.IntVar(&o.StoredModels, "max-models", o.StoredModels, "how many models the folder of --models may come to hold")
	f.Int64Var(&o.CacheBytes, "model-cache", o.CacheBytes, "memory for models that stay loaded, in bytes")
	f.IntVar(&o.Batch.Size, "batch-size", o.Batch.Size, "most images of one model that run together (default: what pays, by provider and image size)")
	f.DurationVar(&o.Batch.Delay, "batch-delay", o.Batch.Delay, "how long an image may be held back for others on their way, at most 2ms")

	f.IntVar(&o.WaitingTrainings, "waiting-trainings", o.WaitingTrainings, "how many trainings may wait behind the running one")
	f.IntVar(&o.WaitingDetections, "waiting-detections", o.WaitingDetections, "how many detections may wait behind the running ones")
	f.IntVar(&o.TrainingThreads, "training-threads", o.TrainingThreads, "threads that a training computes with (default: as many as --threads)")
	f.IntVar(&o.TrainingNiceness, "training-niceness", o.TrainingNiceness, "how far trainings stand back behind detections, 0 to 19, on Linux")
}

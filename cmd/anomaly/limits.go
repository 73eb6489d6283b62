package main

import (
	"github.com/deepmed/anomaly/internal/api"
	"github.com/spf13/pflag"
)

// addLimits adds a flag for each limit on the resources that requests may use.
func addLimits(f *pflag.FlagSet, o *api.Options) {
	addJobLimits(f, o)
	f.Int64Var(&o.BodyBytes, "max-body", o.BodyBytes, "largest request, in bytes")
	f.DurationVar(&o.ReadPause, "upload-pause", o.ReadPause, "longest pause in an upload")
	f.DurationVar(&o.DetectTime, "max-detect-time", o.DetectTime, "longest duration of a /detect or of another request that uses a model, with upload and waiting; 0 is unlimited")
	f.Float64Var(&o.DefaultMaxSeconds, "default-max-seconds", o.DefaultMaxSeconds, "max_seconds of a /train whose form has none, for clients that give up after a fixed time; upload and waiting count; 0 is unlimited")

	f.Int64Var(&o.RequestImages, "max-images", o.RequestImages, "largest total size of the images or tensors of a request, in bytes")
	f.Int64Var(&o.UploadBytes, "upload-memory", o.UploadBytes, "memory for the uploads of all requests, in bytes; zips of images are on disk, in --temp-dir")
	f.IntVar(&o.FeedbackImages, "max-feedback", o.FeedbackImages, "largest number of images of a named model's feedback")
	f.Int64Var(&o.FeedbackBytes, "feedback-bytes", o.FeedbackBytes, "largest size of all images of a named model's feedback, in bytes")
	f.IntVar(&o.Batch.Size, "batch-size", o.Batch.Size, "largest number of images of one model that run as a batch (default: by provider and image size)")
	f.DurationVar(&o.Batch.Delay, "batch-delay", o.Batch.Delay, "longest time that an image waits for others of its batch, at most 2ms")

	f.IntVar(&o.StoredJobs, "max-jobs", o.StoredJobs, "largest number of jobs that are kept; for a new one, the job that ended first is removed")
	f.DurationVar(&o.JobAge, "job-age", o.JobAge, "how long a job and its model are kept after its end; 0 is unlimited")
	f.Int64Var(&o.JobBytes, "max-job-bytes", o.JobBytes, "largest size of the uploads and models of all jobs, in bytes; each unfinished job counts 64 MiB for its model")

	f.IntVar(&o.WaitingTrainings, "waiting-trainings", o.WaitingTrainings, "largest number of trainings that wait for the running one")
	f.IntVar(&o.WaitingDetections, "waiting-detections", o.WaitingDetections, "largest number of detections that wait for the running ones")
}

// addJobLimits adds those that apply to jobs, which a worker has too.
func addJobLimits(f *pflag.FlagSet, o *api.Options) {
	f.DurationVar(&o.TrainTime, "max-train-time", o.TrainTime, "longest duration of a /train, with upload and waiting; 0 is unlimited")
	f.Int64Var(&o.Models.MaxBytes, "max-model", o.Models.MaxBytes, "largest model file, in bytes")
	f.Int64Var(&o.Models.MaxParameters, "max-parameters", o.Models.MaxParameters, "largest number of weights and biases of a model")
	f.Int64Var(&o.Models.MaxUnpacked, "max-model-unpacked", o.Models.MaxUnpacked, "largest unpacked size of a model's zip, in bytes")
	f.IntVar(&o.Models.MaxSide, "max-image-size", o.Models.MaxSide, "largest image_size of a model or a training, in pixels")
	f.IntVar(&o.Models.MaxNodes, "max-nodes", o.Models.MaxNodes, "largest number of operators in a model's ONNX graph")
	f.Int64Var(&o.Images.MaxBytes, "max-image", o.Images.MaxBytes, "largest image file, in bytes")
	f.IntVar(&o.Images.MaxPixels, "max-pixels", o.Images.MaxPixels, "largest image, in pixels")
	f.IntVar(&o.Dataset.Entries, "max-files", o.Dataset.Entries, "largest number of files in a zip of images")
	f.Int64Var(&o.Dataset.UnpackedBytes, "max-unpacked", o.Dataset.UnpackedBytes, "largest unpacked size of a zip of images, in bytes")
	f.Int64Var(&o.Dataset.Ratio, "max-ratio", o.Dataset.Ratio, "largest ratio of unpacked to packed size of a zip of images, above 256 MiB")
	f.Int64Var(&o.Dataset.PreparedBytes, "max-dataset", o.Dataset.PreparedBytes, "upper bound of all prepared images of a training, in memory and on disk, in bytes")
	f.Int64Var(&o.Dataset.MemoryBytes, "dataset-memory", o.Dataset.MemoryBytes, "memory for the prepared images of a training, in bytes; the others are on disk, in --temp-dir")
	f.IntVar(&o.StoredModels, "max-models", o.StoredModels, "largest number of models in the folder of --models")
	f.IntVar(&o.ModelVersions, "versions", o.ModelVersions, "largest number of versions of a named model, with the current one; the oldest are removed")
	f.Int64Var(&o.VersionBytes, "version-bytes", o.VersionBytes, "largest size of all versions of a named model, in bytes; the current one is kept whatever its size")
	f.Int64Var(&o.CacheBytes, "model-cache", o.CacheBytes, "memory for loaded models, in bytes")
	f.StringVar(&o.ModelCacheDir, "model-cache-dir", "", "folder with copies of the files of a cluster's models, for one process (default: a temporary folder)")
	f.Int64Var(&o.ModelCacheBytes, "model-cache-bytes", o.ModelCacheBytes, "largest size of the copies of the files of a cluster's models, in bytes")
	f.Int64Var(&o.StreamBytes, "stream-bytes", o.StreamBytes, "largest size of the images that wait in a cluster's stream of images, and of its verdicts, in bytes; the same in all workers")
	f.DurationVar(&o.CheckpointInterval, "checkpoint-interval", o.CheckpointInterval, "time between two checkpoints of the training of a job; 0 is none")
	f.IntVar(&o.TrainingThreads, "training-threads", o.TrainingThreads, "number of compute threads of a training (default: as --threads)")
	f.IntVar(&o.TrainingNiceness, "training-niceness", o.TrainingNiceness, "niceness of the threads of a training, 0 to 19, on Linux")
}

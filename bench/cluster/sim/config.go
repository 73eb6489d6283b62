package sim

// Costs are measured service times and sizes. Work is in core seconds of one thread.
type Costs struct {
	// Receive, Decode, Infer and Answer are the work of a single detection over HTTP.
	Receive float64 `json:"receive,omitempty"`
	Decode  float64 `json:"decode,omitempty"`
	Infer   float64 `json:"infer,omitempty"`
	Answer  float64 `json:"answer,omitempty"`
	// Wait is the time of a request that is neither work nor a wait for a core, such as the
	// time to wake threads.
	Wait float64 `json:"wait,omitempty"`
	// AllThreads is the time of a run on all cores of a serving machine, divided by Infer.
	AllThreads float64 `json:"all_threads,omitempty"`
	// Contention is the factor of all work while all cores are busy: above 1 because cores
	// share memory and, in pairs, their units; below 1 if that is less than what a process
	// does on cores that would be idle, such as collecting garbage. 0 means 1.
	Contention float64 `json:"contention,omitempty"`
	// Client is the work of a client for a request; it counts only when clients run on the
	// machine of the service.
	Client float64 `json:"client,omitempty"`
	// Spread are factors of the work of a request, of mean 1, as measured one after the
	// other. One is drawn for each request.
	Spread []float64 `json:"spread,omitempty"`

	// Load is the work to load a model from its file. ModelFile is the size of the file, and
	// ModelMemory the memory that the cache counts, in bytes.
	Load        float64 `json:"load,omitempty"`
	ModelFile   float64 `json:"model_file_bytes,omitempty"`
	ModelMemory float64 `json:"model_memory_bytes,omitempty"`
	// ImageFile is the mean size of an image file, in bytes.
	ImageFile float64 `json:"image_file_bytes,omitempty"`
	// Train is the work of a training.
	Train float64 `json:"train,omitempty"`

	// Message is the time of a request and its answer through NATS, without work; Byte is
	// what each byte of it adds. MessageWork and ByteWork are the work of a NATS server.
	Message     float64 `json:"message,omitempty"`
	Byte        float64 `json:"byte,omitempty"`
	MessageWork float64 `json:"message_work,omitempty"`
	ByteWork    float64 `json:"byte_work,omitempty"`
	// Publish is the time until a small message of a stream is stored by the replicas, if
	// nothing else is, without work and disk. Sync is the time of a server's disk for it, and
	// WriteByte for each byte. PublishWork and WriteByteWork are the work of each server that
	// stores it; PublisherWork and PublisherByteWork are the work of its sender.
	Publish           float64 `json:"publish,omitempty"`
	Sync              float64 `json:"sync,omitempty"`
	WriteByte         float64 `json:"write_byte,omitempty"`
	PublishWork       float64 `json:"publish_work,omitempty"`
	WriteByteWork     float64 `json:"write_byte_work,omitempty"`
	PublisherWork     float64 `json:"publisher_work,omitempty"`
	PublisherByteWork float64 `json:"publisher_byte_work,omitempty"`
	// Fetch is the time to read a message of a stream, without work; ReadByte adds for each
	// byte. FetchWork and ReadByteWork are the work of the server; ReaderWork and
	// ReaderByteWork are the work of the reader.
	Fetch          float64 `json:"fetch,omitempty"`
	ReadByte       float64 `json:"read_byte,omitempty"`
	FetchWork      float64 `json:"fetch_work,omitempty"`
	ReadByteWork   float64 `json:"read_byte_work,omitempty"`
	ReaderWork     float64 `json:"reader_work,omitempty"`
	ReaderByteWork float64 `json:"reader_byte_work,omitempty"`
	// TakeWork is the work of each replica for a message that a consumer takes and
	// acknowledges, both of which the replicas store.
	TakeWork float64 `json:"take_work,omitempty"`
	// Upload is the work for each byte of an uploaded zip, of the service and its client: it
	// is received and written to a file.
	Upload float64 `json:"upload_byte,omitempty"`
}

// Config describes a cluster and what is asked of it.
type Config struct {
	Seed int64
	// Seconds are simulated; what begins in the first Warmup is not counted.
	Seconds, Warmup float64
	Costs           Costs

	// Serve and Workers are the numbers of processes, each on a machine of Cores cores with
	// as many threads. Servers is the number of NATS servers, Replicas of each stream.
	// With Shared, all processes and the clients are on one machine of Cores cores.
	Serve, Workers, Servers, Replicas int
	Cores, ServerCores                int
	Shared                            bool
	// Pinned gives each process of a shared machine one core, the i-th of its kind the core
	// i mod Cores. A client works on the core of the service that it asks.
	Pinned bool
	// Threads is the number of threads of a process that serves or works; 0 means Cores.
	Threads int
	// Others is the share of a core that other programs take from a thread that could run.
	Others float64
	// Slowness are factors of all work on the shared machine, or on each core of it with Pinned,
	// in steps of SlownessStep from the start, the last one for all later steps. nil means 1.
	Slowness [][]float64
	// Idle is the work that the processes do in a second without any load, in core seconds:
	// the NATS servers tell each other that they are alive. It needs Shared.
	Idle float64

	// Models is the number of stored models. The k-th is used in proportion to k^-Zipf.
	Models int
	Zipf   float64
	// CacheBytes is the memory budget of loaded models in a process, and Owners the number
	// of serving processes that keep a model; 0 means that all load it themselves.
	CacheBytes float64
	Owners     int
	// BatchSize and BatchDelay are the options of the same names of the service.
	BatchSize  int
	BatchDelay float64

	// Rate is the mean number of single detections a second. Peak is the ratio of the
	// busiest moment of a Day, in seconds, to the mean; 0 or 1 means a constant rate.
	Rate, Peak, Day float64
	// Ramp is the time in which the rate rises from nothing, in seconds.
	Ramp float64
	// Arrivals, if not nil, are the times of the detections instead of Rate.
	Arrivals []float64
	// Clients, if not 0, send their next detection when they have the answer to the last
	// one, instead of Rate.
	Clients int
	// BulkRate is the mean number of images of bulk jobs a second. JobImages is the number of
	// images of a job, PieceImages of a piece. With BulkAtOnce, one job arrives at the start.
	BulkRate               float64
	JobImages, PieceImages int
	BulkAtOnce             bool
	// Poll is the time between two looks of a client whether its job has ended; 0 means
	// that it knows at once.
	Poll float64
	// Trainings is the mean number of trainings a second.
	Trainings float64

	// Failures end processes.
	Failures []Failure
	// Loaded begins with caches that hold the most used models of each process.
	Loaded bool
	// From and Until bound the detections that are also counted in Result.Window, by the
	// time of their start.
	From, Until float64
	// EndAtReject ends the simulation with the first rejected detection.
	EndAtReject bool
}

// SlownessStep is the time of each factor of Config.Slowness, in seconds.
const SlownessStep = 0.1

// Kind is a kind of process.
type Kind int

// The kinds of processes that a Failure may end.
const (
	ServeProcess Kind = iota
	WorkerProcess
	ServerProcess
)

// Failure ends a process at a time, for a number of seconds.
type Failure struct {
	Kind    Kind
	Index   int
	At, For float64
}

// Constants of the service that the simulation shares with it.
const (
	detectionsPerThread = 8
	waitingDetections   = 256
	chunkBytes          = 512 << 10
	// detectedAfter is the time after which the others know that a process has ended: the
	// lifetime of its entry among the nodes.
	detectedAfter = 10
	// pieceRedelivery and jobRedelivery are the times after which the piece or the job of a
	// worker that has ended is delivered again.
	pieceRedelivery = 20
	jobRedelivery   = 30
	// queuePause is the time between two looks of a worker for jobs. It looks when it hears of
	// a job's record, before the message is stored, and then after this time.
	queuePause = 0.2
	// election is the time without a leader after a NATS server has ended.
	election = 4
	// forwardTimeout is the longest time that a process waits for the owner of a model.
	forwardTimeout = 3
)

// Result is what a simulation counted after the warm-up.
type Result struct {
	Seconds float64
	// Detections were answered; Rejected were answered 503, because too many waited;
	// Retried were sent again, because the process had ended.
	Detections, Rejected, Retried int
	// Latency is the latency of all single detections, Window of the detections that started
	// between Config.From and Until.
	Latency, Window Quantiles
	// Loads, Hits and Forwards are of models.
	Loads, Hits, Forwards int
	// BulkImages and Pieces were judged, JobTime are the times of jobs.
	BulkImages, Pieces, Redelivered int
	JobTime                         Quantiles
	Trained                         int
	TrainTime                       Quantiles
	// ServeUse, WorkerUse, ServerUse and DiskUse are the used share of the cores and disks
	// of each kind, the busiest disk for the last.
	ServeUse, WorkerUse, ServerUse, DiskUse float64
	// StoredBytes were written to the streams, each counted once whatever the replicas.
	StoredBytes float64
	// Waiting is the number of pieces, trainings and detections that had not ended.
	Waiting int
	Events  uint64
}

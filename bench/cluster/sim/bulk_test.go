package sim

import "testing"

// shared returns one machine of two cores, with a job of some images at the start and nothing
// that costs anything.
func shared(images, piece int) Config {
	return Config{Seed: 1, Seconds: 100, Serve: 1, Workers: 1, Servers: 3, Replicas: 3, Cores: 2, ServerCores: 1, Shared: true,
		Models: 1, CacheBytes: 1e9, BatchSize: 1, BulkAtOnce: true, BulkRate: 1, JobImages: images, PieceImages: piece, Loaded: true,
		Costs: Costs{ModelMemory: 1}}
}

func TestPublish_TakesTheWorkOfAllServersThatShareAMachine(t *testing.T) {
	c := shared(1, 1)
	c.Costs = Costs{PublisherWork: 0.001, PublisherByteWork: 1e-6, PublishWork: 0.004, WriteByteWork: 2e-6, Sync: 0.01, WriteByte: 1e-5, Publish: 0.1}
	x := &cluster{Config: &c, loop: &Loop{}, draws: newDraws(&c)}
	x.build()
	took := 0.0
	x.publish(x.core(0), streamPieces, 1000, func() { took = x.loop.now })
	x.loop.Run(1)
	// The work of the sender, the work of three servers on two cores, the disk, and the rest.
	if want := 0.002 + 3*0.006/2 + 0.02 + 0.1; !near(took, want, 1e-6) {
		t.Errorf("it took %.4f s, expected %.4f", took, want)
	}
}

func TestFetch_TakesTheWorkOfTheServerAndOfTheReader(t *testing.T) {
	c := shared(1, 1)
	c.Costs = Costs{FetchWork: 0.001, ReadByteWork: 1e-6, Fetch: 0.1, ReadByte: 1e-5, ReaderWork: 0.004, ReaderByteWork: 2e-6, TakeWork: 0.05}
	x := &cluster{Config: &c, loop: &Loop{}, draws: newDraws(&c)}
	x.build()
	took := 0.0
	x.fetch(x.core(0), streamPieces, 1000, func() { took = x.loop.now })
	x.loop.Run(1)
	if want := 0.002 + 0.11 + 0.006; !near(took, want, 1e-6) {
		t.Errorf("it took %.4f s, expected %.4f", took, want)
	}
	before := x.core(0).Busy()
	x.take(x.core(0), streamPieces, 1000, func() {})
	x.loop.Run(2)
	// Each of three replicas stores who has the message.
	if work, want := x.core(0).Busy()-before, 0.002+0.006+3*0.05; !near(work, want, 1e-6) {
		t.Errorf("a message that is taken is %.4f s of work, expected %.4f", work, want)
	}
}

func TestRun_UsesTheWorkOfIdleProcesses(t *testing.T) {
	c := shared(1, 1)
	c.BulkAtOnce, c.BulkRate, c.Idle = false, 0, 0.3
	if r := run(t, c); !near(r.ServeUse, 0.15, 0.01) {
		t.Errorf("%.3f of two cores are used, expected 0.15", r.ServeUse)
	}
	c.Shared = false
	if _, err := Run(c); err == nil {
		t.Error("idle processes use machines of their own")
	}
}

func TestRun_FindsAJobAfterThePauseOfTheQueue(t *testing.T) {
	c := shared(10, 10)
	c.Costs.Infer = 0.01 // 0.05 s on two cores
	if r := run(t, c); !near(r.JobTime.Max(), queuePause+0.05, 1e-6) {
		t.Errorf("a job took %v s, expected %v", r.JobTime.Max(), queuePause+0.05)
	}
	c.Poll = 0.2
	if r := run(t, c); !near(r.JobTime.Max(), 0.4, 1e-6) {
		t.Errorf("its client saw the end after %v s, expected 0.4", r.JobTime.Max())
	}
}

func TestRun_CopiesTheZipInTheServiceAndAtTheCoordinator(t *testing.T) {
	c := shared(10, 10)
	c.Costs.ImageFile, c.Costs.Upload = 1e6, 1e-8
	if r, want := run(t, c), queuePause+2*0.1; !near(r.JobTime.Max(), want, 1e-6) {
		t.Errorf("a job took %v s, expected %v", r.JobTime.Max(), want)
	}
}

func TestRun_StoresTheModelWithTheJob(t *testing.T) {
	c := shared(10, 5)
	c.Costs.ImageFile, c.Costs.ModelFile = 1e5, 3e6
	// The zip and its pieces, the model, the results and their copy, and three versions of the
	// record.
	if r, want := run(t, c), 2*1e6+3e6+2*10*resultBytes+3*recordBytes; !near(r.StoredBytes, want, 1e-9) {
		t.Errorf("%.0f bytes are stored, expected %.0f", r.StoredBytes, want)
	}
}

func TestWorker_LoadsAModelOnceForItsPieces(t *testing.T) {
	c := shared(10, 1)
	c.Workers, c.Costs.Infer, c.Costs.Load, c.Loaded = 3, 0.01, 0.5, false
	if r := run(t, c); r.Loads != 3 || r.BulkImages != 10 {
		t.Errorf("%d loads by 3 workers, %d images of 10", r.Loads, r.BulkImages)
	}
	c.Loaded = true
	if r := run(t, c); r.Loads != 0 {
		t.Errorf("%d loads of a loaded model", r.Loads)
	}
}

func TestWorker_UsesNoMoreThanItsThreads(t *testing.T) {
	c := shared(10, 10)
	c.Threads, c.Costs.Infer = 1, 0.01
	if r := run(t, c); !near(r.JobTime.Max(), queuePause+0.1, 1e-6) {
		t.Errorf("a job took %v s, expected %v", r.JobTime.Max(), queuePause+0.1)
	}
	c.Threads = 3
	if _, err := Run(c); err == nil {
		t.Error("three threads on two cores are accepted")
	}
}

func TestWorker_JudgesOnePieceAtATime(t *testing.T) {
	c := shared(20, 10)
	c.Costs.Infer = 0.01 // a piece takes 0.05 s; both together would end after 0.1 s
	c.Seconds = queuePause + 0.06
	if r := run(t, c); r.Pieces != 1 {
		t.Errorf("%d pieces have ended, expected the first", r.Pieces)
	}
}

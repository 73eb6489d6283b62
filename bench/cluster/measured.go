package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/deepmed/anomaly/bench/cluster/sim"
	"github.com/deepmed/anomaly/internal/files"
)

// measured is a file of service times.
type measured struct {
	Date    string `json:"date"`
	Machine string `json:"machine"`
	Command string `json:"command"`
	// Sizes are by the side of the model's images, in pixels.
	Sizes []sizeCosts `json:"sizes"`
	// NATS holds the costs of three servers on the same machine, each message written by
	// all of them before it is acknowledged.
	NATS natsCosts `json:"nats"`
}

// sizeCosts are the costs of models of one image size. Times are in seconds.
type sizeCosts struct {
	Side int `json:"side"`
	// Alone is the time of a detection of one client, with all threads of the service.
	Alone   float64 `json:"alone"`
	Alone99 float64 `json:"alone_p99"`
	// Rate is the number of detections a second of many clients, on the same machine.
	Rate float64 `json:"rate"`
	// Batches are the times per image in a batch of a number of images, on one thread.
	Batches []batchCost `json:"batches"`
	// TrainImages is the number of images of a training at level 1, and TrainSeconds its
	// duration.
	TrainImages  int     `json:"train_images"`
	TrainSeconds float64 `json:"train_seconds"`
	// Costs has the costs of detections, loads and trainings. The costs of NATS are 0.
	Costs sim.Costs `json:"costs"`
}

type batchCost struct {
	Images   int     `json:"images"`
	PerImage float64 `json:"per_image"`
}

type natsCosts struct {
	// Published is the median time of a small message, PublishP99 the 99th percentile.
	Published  float64 `json:"published"`
	PublishP99 float64 `json:"publish_p99"`
	// PublishRate is the number of small messages a second from 32 publishers.
	PublishRate float64 `json:"publish_rate"`
	// PutRate and GetRate are the megabytes a second of an object of 32 MB.
	PutRate float64   `json:"put_mb_per_second"`
	GetRate float64   `json:"get_mb_per_second"`
	Costs   sim.Costs `json:"costs"`
}

// costs returns the costs of models of one size, and the costs of NATS.
func (m *measured) costs(side int) (sim.Costs, error) {
	for _, s := range m.Sizes {
		if s.Side != side {
			continue
		}
		c, n := s.Costs, m.NATS.Costs
		c.Message, c.Byte, c.MessageWork, c.ByteWork = n.Message, n.Byte, n.MessageWork, n.ByteWork
		c.Publish, c.Sync, c.WriteByte, c.PublishWork, c.WriteByteWork = n.Publish, n.Sync, n.WriteByte, n.PublishWork, n.WriteByteWork
		c.PublisherWork, c.PublisherByteWork, c.TakeWork = n.PublisherWork, n.PublisherByteWork, n.TakeWork
		c.Fetch, c.ReadByte, c.FetchWork, c.ReadByteWork, c.ReaderWork, c.ReaderByteWork = n.Fetch, n.ReadByte, n.FetchWork, n.ReadByteWork, n.ReaderWork, n.ReaderByteWork
		return c, nil
	}
	return sim.Costs{}, fmt.Errorf("nothing was measured at %d px", side)
}

func readMeasured(path string) (*measured, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &measured{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func (m *measured) write(path string) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return files.WriteAtomic(path, func(w io.Writer) error {
		_, err := w.Write(append(data, 10))
		return err
	})
}

// machine describes the processor of this machine.
func machine() string {
	name := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(l, "model name"); ok {
				name = strings.TrimSpace(strings.TrimLeft(v, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores", name, runtime.NumCPU())
}

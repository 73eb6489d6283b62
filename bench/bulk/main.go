// Command bulk measures the detection of many images as a job, against `anomaly detect` of
// the same folder: a service alone, and 1, 2 and 3 workers with three NATS servers. All
// judging processes have one thread and are pinned to a processor.
//
//	go run ./bench/bulk [-images 20000] [-rounds 5]
//
// It needs Linux with taskset, two processors, and ONNX Runtime as for the program.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

func main() {
	images := flag.Int("images", 20_000, "number of images, which all configurations judge")
	rounds := flag.Int("rounds", 5, "number of rounds, each of a part of the images")
	flag.Parse()
	if err := run(*images, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bulk:", err)
		os.Exit(1)
	}
}

// measurement is what a round of a configuration has taken.
type measurement struct {
	images   int
	wall     time.Duration // of the detection
	accepted time.Duration // from the submission to its answer
	judging  time.Duration // CPU time of the processes that judge
	others   time.Duration // CPU time of the service and the NATS servers
}

// configuration is one way to judge a folder.
type configuration struct {
	name    string
	workers int
	measure func(folder string, images int) (measurement, error)
	rounds  []measurement
}

func run(images, rounds int) (err error) {
	if rounds < 1 || images < rounds*64 {
		return errors.New("each round needs 64 images")
	}
	if _, err := exec.LookPath("taskset"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-bulk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := newLab(dir)
	if err != nil {
		return err
	}
	defer l.close()
	n := images / rounds
	var folders []string
	for r := range rounds {
		folders = append(folders, filepath.Join(dir, "round"+strconv.Itoa(r)))
		if err := writeImages(folders[r], r*n, n); err != nil {
			return err
		}
	}
	if err := l.start(folders[0]); err != nil {
		return err
	}
	all := []*configuration{{name: "anomaly detect", workers: 1, measure: l.detect}, {name: "service alone", workers: 1, measure: l.alone}}
	for k := 1; k <= 3; k++ {
		all = append(all, &configuration{name: fmt.Sprintf("cluster, %d workers", k), workers: k, measure: func(folder string, n int) (measurement, error) { return l.cluster(k, folder, n) }})
	}
	for r, folder := range folders {
		for _, c := range all {
			m, err := c.measure(folder, n)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			c.rounds = append(c.rounds, m)
			fmt.Fprintf(os.Stderr, "round %d of %d, %s: %.1f s\n", r+1, rounds, c.name, m.wall.Seconds())
		}
	}
	report(all, n, rounds)
	return nil
}

// median returns the median of a value of the rounds.
func (c *configuration) median(of func(measurement) float64) float64 {
	var list []float64
	for _, m := range c.rounds {
		list = append(list, of(m))
	}
	slices.Sort(list)
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// ratio returns the median over the rounds of a value divided by that of another
// configuration in the same round.
func (c *configuration) ratio(by *configuration, of func(measurement) float64) float64 {
	r := configuration{}
	values := map[int]float64{}
	for i, m := range c.rounds {
		values[i] = of(m) / of(by.rounds[i])
		r.rounds = append(r.rounds, measurement{images: i})
	}
	return r.median(func(m measurement) float64 { return values[m.images] })
}

func perImage(d func(measurement) time.Duration) func(measurement) float64 {
	return func(m measurement) float64 { return d(m).Seconds() * 1000 / float64(m.images) }
}

var (
	wall     = perImage(func(m measurement) time.Duration { return m.wall })
	accepted = perImage(func(m measurement) time.Duration { return m.accepted })
	judging  = perImage(func(m measurement) time.Duration { return m.judging })
	others   = perImage(func(m measurement) time.Duration { return m.others })
)

func report(all []*configuration, n, rounds int) {
	detect, one := all[0], all[2]
	fmt.Printf("%d rounds of %d images of 64×64 pixels; medians of the rounds, ratios within a round\n\n", rounds, n)
	fmt.Println("| | images/s | ms an image | against detect | CPU ms an image, judging | against detect | CPU ms an image, service and NATS | submission, ms an image | efficiency |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, c := range all {
		efficiency := ""
		if c.workers > 1 {
			efficiency = fmt.Sprintf("%.2f", 1/c.ratio(one, wall)/float64(c.workers))
		}
		fmt.Printf("| %s | %.0f | %.3f | %.3f | %.3f | %.3f | %.3f | %.3f | %s |\n", c.name, 1000/c.median(wall), c.median(wall), c.ratio(detect, wall),
			c.median(judging), c.ratio(detect, judging), c.median(others), c.median(accepted), efficiency)
	}
	fmt.Printf(`
detect, the service alone and the first worker are pinned to processor 0, the second worker to
processor 1, and the third to processor 0 again. The service of the cluster, its NATS servers and the
client are pinned to processor 1. So 1 worker has a processor to itself; the second one shares its
processor with all the others, and with two processors a third one cannot be faster: what is measured
is that it does no harm. The time of a job is from its start to its end. That of detect is without
the start of the program, which a detection of one image takes.
`)
}

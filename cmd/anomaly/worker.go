package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/api"
	"github.com/spf13/cobra"
)

func workerCommand() *cobra.Command {
	var (
		engine  engineFlags
		addr    string
		logs    logFlags
		traces  traceFlags
		grace   time.Duration
		cluster natsFlags
		options = api.DefaultOptions()
	)
	c := &cobra.Command{
		Use:   "worker",
		Short: "Do the jobs of a cluster",
		Long: "Does the jobs that services with the same --nats accept, until SIGTERM or an interrupt. Running jobs are given back\n" +
			"then: another worker goes on with them. Any number of workers may run beside each other. --addr serves /livez, /readyz,\n" +
			"/health and /metrics only.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			log, err := logs.open()
			if err != nil {
				return err
			}
			if cluster.url = cmp.Or(cluster.url, os.Getenv("NATS_URL")); cluster.url == "" {
				return errNoNATS
			}
			for _, kind := range options.Work {
				if !slices.Contains(api.JobKinds(), kind) {
					return fmt.Errorf("--kinds: no jobs are of the kind %q; there are %s", kind, strings.Join(api.JobKinds(), ", "))
				}
			}
			if options.Parallel < 1 {
				return fmt.Errorf("--parallel must be at least 1, got %d", options.Parallel)
			}
			stopTraces, err := traces.start(c.Context(), "worker", log)
			if err != nil {
				return err
			}
			defer stopTraces()
			e, err := engine.open()
			if err != nil {
				return err
			}
			if options.Broker, err = cluster.open(c.Context(), "anomaly worker", log); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, options.Broker.Close()) }()
			options.ProbesOnly, options.Page = true, false
			server, err := api.New(e, log, options)
			if err != nil {
				return err
			}
			l, err := listen(addr, server)
			if err != nil {
				return err
			}
			log.Info("working", slog.String("address", l.Addr().String()), slog.Any("kinds", options.Work), slog.Int("parallel", options.Parallel),
				slog.String("node", options.Broker.Node()), slog.Int("threads", e.Threads()))
			return serveUntilDone(c.Context(), server, l, grace, log)
		},
	}
	f := c.Flags()
	engine.add(c)
	logs.add(c)
	traces.add(f)
	cluster.add(f)
	f.StringVar(&addr, "addr", "", "address of the endpoints for operators, host:port, or host alone for the port in PORT (default: 127.0.0.1:$PORT, 127.0.0.1:"+defaultPort+" without PORT)")
	f.StringSliceVar(&options.Work, "kinds", api.JobKinds(), "kinds of the jobs to do; stream is no job but the stream of images (docs/streaming.md)")
	f.IntVar(&options.Parallel, "parallel", 1, "largest number of jobs of each kind that run at once")
	f.DurationVar(&grace, "grace", 0, "time for running jobs to end after SIGTERM before they are given back")
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for uploads and for prepared images that do not fit in memory (default: the system's)")
	f.Int64Var(&options.Seed, "seed", 0, "random seed of every training")
	addJobLimits(f, &options)
	return c
}

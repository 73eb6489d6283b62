package api

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/prometheus/client_golang/prometheus"
)

// loadCollector collects the loads of the queue. In a cluster each process reports those
// of all jobs that it knows, which are the same within a second.
type loadCollector struct{ loads func() map[string]jobs.Load }

var (
	jobsWaiting = prometheus.NewDesc("anomaly_jobs_waiting", "Number of jobs that wait, by kind.", []string{"kind"}, nil)
	jobsRunning = prometheus.NewDesc("anomaly_jobs_running", "Number of jobs that run, by kind.", []string{"kind"}, nil)
	jobsOldest  = prometheus.NewDesc("anomaly_jobs_oldest_waiting_seconds", "Time since the submission of the oldest waiting job, by kind; 0 if none waits.", []string{"kind"}, nil)
	jobsAgain   = prometheus.NewDesc("anomaly_jobs_redelivered_total", "Number of jobs whose runner was gone, as this process found out, by kind.", []string{"kind"}, nil)
)

// Describe is part of prometheus.Collector.
func (c loadCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{jobsWaiting, jobsRunning, jobsOldest, jobsAgain} {
		out <- d
	}
}

// Collect is part of prometheus.Collector. All kinds have values, so that an alert sees a 0
// before the first job.
func (c loadCollector) Collect(out chan<- prometheus.Metric) {
	loads := c.loads()
	kinds := map[string]bool{jobs.KindTrain: true, kindDetect: true}
	for kind := range loads {
		kinds[kind] = true
	}
	for kind := range kinds {
		l := loads[kind]
		out <- prometheus.MustNewConstMetric(jobsWaiting, prometheus.GaugeValue, float64(l.Waiting), kind)
		out <- prometheus.MustNewConstMetric(jobsRunning, prometheus.GaugeValue, float64(l.Running), kind)
		out <- prometheus.MustNewConstMetric(jobsOldest, prometheus.GaugeValue, l.Oldest.Seconds(), kind)
		out <- prometheus.MustNewConstMetric(jobsAgain, prometheus.CounterValue, float64(l.Redelivered), kind)
	}
}

// natsCollector collects the state of the connection to the NATS servers of a cluster.
type natsCollector struct{ broker *broker.Broker }

var (
	natsConnected = prometheus.NewDesc("anomaly_nats_connected", "1 while the process is connected to a NATS server.", nil, nil)
	natsBytes     = prometheus.NewDesc("anomaly_nats_store_bytes", "Size of the files of JetStream in the account of the service, each replica counted, in bytes; missing while the servers do not answer.", nil, nil)
	natsLimit     = prometheus.NewDesc("anomaly_nats_store_limit_bytes", "Limit of anomaly_nats_store_bytes; -1 for an account without one.", nil, nil)
)

// natsScrapeTime is the longest time that a scrape waits for the servers.
const natsScrapeTime = time.Second

// Describe is part of prometheus.Collector.
func (c natsCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{natsConnected, natsBytes, natsLimit} {
		out <- d
	}
}

// Collect is part of prometheus.Collector.
func (c natsCollector) Collect(out chan<- prometheus.Metric) {
	connected := 0.0
	if c.broker.Conn.IsConnected() {
		connected = 1
	}
	out <- prometheus.MustNewConstMetric(natsConnected, prometheus.GaugeValue, connected)
	if connected == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), natsScrapeTime)
	defer cancel()
	info, err := c.broker.JetStream.AccountInfo(ctx)
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(natsBytes, prometheus.GaugeValue, float64(info.Store))
	out <- prometheus.MustNewConstMetric(natsLimit, prometheus.GaugeValue, float64(info.Limits.MaxStore))
}

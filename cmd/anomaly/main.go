// Command anomaly learns from normal images what normal looks like and says of
// other images whether they are anomalous, on the command line and over HTTP.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/spf13/cobra"
)

// Exit statuses of the command.
const (
	exitNormal  = 0
	exitAnomaly = 1
	exitError   = 2
)

// exitStatus is an error that only says how to exit: what there is to say was
// printed.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	var status exitStatus
	switch {
	case errors.As(err, &status):
		os.Exit(int(status))
	case err != nil:
		fmt.Fprintln(os.Stderr, "anomaly:", err)
		os.Exit(exitError)
	}
	os.Exit(exitNormal)
}

// handlesInterrupts is the annotation of a command that an interrupt does not
// simply cancel.
const handlesInterrupts = "handles-interrupts"

// gcPercent is half of Go's default. A request leaves little garbage, and a
// service's heap holds 7 MB less, of 131, under load; that of a training is mostly
// images and features, which stay, and hardly anything comes and goes beside them.
const gcPercent = 50

// engineFlags are the flags of every command that computes.
type engineFlags struct {
	library  string
	provider string
	threads  int
}

func (f *engineFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.library, "onnxruntime", "", "ONNX Runtime's shared library, a file or its folder (default: "+ort.EnvLibrary+", the cache, the system)")
	c.Flags().StringVar(&f.provider, "provider", string(ort.Auto), "execution provider: auto, cpu or cuda")
	c.Flags().IntVar(&f.threads, "threads", 0, "threads to compute with (default: one for each processor)")
}

// open opens the engine of a command that computes, and keeps its heap small.
func (f *engineFlags) open() (*ort.Engine, error) {
	p, err := ort.ParseProvider(f.provider)
	if err != nil {
		return nil, err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return ort.Open(ort.Options{Library: f.library, Provider: p, Threads: f.threads})
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "anomaly",
		Short:         "Learns from normal images what normal looks like, and finds the anomalous ones",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRun: func(c *cobra.Command, _ []string) {
			if c.Annotations[handlesInterrupts] == "" {
				ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt)
				context.AfterFunc(ctx, stop)
				c.SetContext(ctx)
			}
		},
	}
	root.AddCommand(serveCommand(), trainCommand(), detectCommand(), evaluateCommand(), calibrateCommand(), inspectCommand(), convertCommand(), exportCommand(), verifyCommand(), healthCommand())
	return root
}

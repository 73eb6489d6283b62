// Command anomaly trains models on normal images and detects anomalous images with
// them, on the command line and over HTTP.
//
// The package holds flags, wiring, printing and exit statuses. The work is in the
// packages that it imports: nothing that another program could need may live here.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	exitNormal  = 0
	exitAnomaly = 1
	exitError   = 2
)

// exitStatus is an error that sets the exit status and prints nothing.
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

// handlesInterrupts is the annotation of a command that handles SIGINT itself. The
// context of every other command ends at the first SIGINT.
const handlesInterrupts = "handles-interrupts"

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "anomaly",
		Short:         "Train image anomaly detection models on normal images, and detect anomalies",
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

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
	ctx, stop := untilSignal(context.Background(), syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	var status exitStatus
	switch {
	case errors.As(err, &status):
		os.Exit(int(status))
	case errors.Is(err, context.Canceled):
		fail(errors.New("interrupted"))
	case err != nil:
		fail(err)
	}
	os.Exit(exitNormal)
}

// fail prints the error and ends the process.
func fail(err error) {
	fmt.Fprintln(os.Stderr, "anomaly:", escaped(err.Error()))
	os.Exit(exitError)
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
		Version:       version(),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRun: func(c *cobra.Command, _ []string) {
			if c.Annotations[handlesInterrupts] == "" {
				ctx, stop := untilSignal(c.Context(), os.Interrupt)
				context.AfterFunc(ctx, stop)
				c.SetContext(ctx)
			}
		},
	}
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand())
	root.AddCommand(serveCommand(), workerCommand(), modelsCommand(), jobsCommand(), trainCommand(), detectCommand(), evaluateCommand(), calibrateCommand(), inspectCommand(), convertCommand(), exportCommand(), verifyCommand(), healthCommand())
	return root
}

// helpCommand replaces cobra's, which exits with 0 when the command does not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Print the help of a command",
		RunE: func(c *cobra.Command, args []string) error {
			command, rest, err := c.Root().Find(args)
			if err != nil {
				return err
			}
			if command == c.Root() && len(rest) > 0 {
				return unknownCommand(command, rest[0])
			}
			command.InitDefaultHelpFlag()
			command.InitDefaultVersionFlag()
			return command.Help()
		},
	}
}

// Command quality measures how well defects are found: on data sets of normal and
// defective images, beside the Python service's recipe; how well the promise on
// false alarms is kept; and what each ingredient of the measure is worth. Run it
// by `make quality`, `make false-alarms` and `make ablation`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root := &cobra.Command{Use: "quality", Short: "Measure how well defects are found", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(generateCommand(), measureCommand(), splitsCommand(), ablationCommand(), picturesCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quality:", err)
		os.Exit(1)
	}
}

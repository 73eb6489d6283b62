// Command quality measures how well defects are detected: on data sets of normal and
// defective images, compared with the Python service's recipe; whether the false alarm
// rate is as configured; and the contribution of each component of the anomaly score
// (ablation). Run it with `make quality`, `make false-alarms` and `make ablation`.
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
	root := &cobra.Command{Use: "quality", Short: "Measure how well defects are detected", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(generateCommand(), framedCommand(), scratchesCommand(), measureCommand(), splitsCommand(), ablationCommand(), picturesCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quality:", err)
		os.Exit(1)
	}
}

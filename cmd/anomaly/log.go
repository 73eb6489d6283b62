package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
)

// logFlags say how a command logs.
type logFlags struct{ format, level string }

func (l *logFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&l.format, "log-format", "text", "log as text or json")
	c.Flags().StringVar(&l.level, "log-level", "info", "log from this level on: debug, info, warn or error; requests for probes and metrics are at debug")
}

// open makes a logger to standard error, where it never mixes with results.
func (l *logFlags) open() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level is %q, choose debug, info, warn or error", l.level)
	}
	o := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
	}
	return nil, fmt.Errorf("--log-format is %q, choose text or json", l.format)
}

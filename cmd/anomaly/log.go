package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
)

// logFlags are the flags of a command that logs.
type logFlags struct{ format, level string }

func (l *logFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&l.format, "log-format", "text", "format of the log: text or json")
	c.Flags().StringVar(&l.level, "log-level", "info", "lowest level that is logged: debug, info, warn or error; successful requests for probes and metrics are at debug")
}

// open returns a logger to standard error; standard output is for results.
func (l *logFlags) open() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level is %q, expected debug, info, warn or error", l.level)
	}
	o := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
	}
	return nil, fmt.Errorf("--log-format is %q, expected text or json", l.format)
}

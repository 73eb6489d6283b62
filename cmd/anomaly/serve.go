package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/api"
	"github.com/spf13/cobra"
)

// defaultPort is the port of the Python service.
const defaultPort = "5029"

// loopback is the host of an address without one.
const loopback = "127.0.0.1"

// address returns the address of the service for the value of --addr, which may have a
// host and a port or the host alone. A missing port is that of PORT, or defaultPort.
func address(flag string) string {
	host, port := loopback, ""
	if flag != "" {
		var err error
		if host, port, err = net.SplitHostPort(flag); err != nil {
			// An IPv6 address may have brackets.
			host, port = strings.TrimSuffix(strings.TrimPrefix(flag, "["), "]"), ""
			if strings.Contains(host, ":") && net.ParseIP(host) == nil {
				return flag // the error of net.Listen describes it
			}
		}
	}
	if port == "" {
		port = os.Getenv("PORT")
	}
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(host, port)
}

func serveCommand() *cobra.Command {
	var (
		engine     engineFlags
		addr       string
		logs       logFlags
		traces     traceFlags
		tokenFile  string
		tokens     string
		secretFile string
		pprofAddr  string
		grace      time.Duration
		noPage     bool
		cluster    natsFlags
		options    = api.DefaultOptions()
	)
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve training and detection over HTTP",
		Long: "Serves HTTP until SIGTERM or an interrupt. Requests that run then may end within --grace; after that they are\n" +
			"cancelled and answered 503. A running job is given back to its queue. Sizes are in bytes, durations as 90s or 2m.\n\n" +
			"With --nats the service is one of a cluster: jobs and models are in the NATS servers, workers (anomaly worker) do the\n" +
			"jobs, and any number of services may run beside each other.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			log, err := logs.open()
			if err != nil {
				return err
			}
			if tokenFile != "" {
				if options.Token, err = api.ReadToken(tokenFile); err != nil {
					return err
				}
			}
			if tokens != "" {
				if options.Tokens, err = api.ReadTokens(tokens); err != nil {
					return err
				}
			}
			if secretFile != "" {
				if options.CallbackSecret, err = api.ReadCallbackSecret(secretFile); err != nil {
					return err
				}
			}
			stopProfiling, err := serveProfiles(pprofAddr, log)
			if err != nil {
				return err
			}
			defer stopProfiling()
			stopTraces, err := traces.start(c.Context(), "serve", log)
			if err != nil {
				return err
			}
			defer stopTraces()
			e, err := engine.open()
			if err != nil {
				return err
			}
			options.Page = !noPage
			if cluster.url != "" && options.ModelsDir != "" {
				return errors.New("--models and --nats exclude each other: with --nats the models are in the NATS servers; anomaly models put stores them there")
			}
			if options.ModelsDir == "" && options.DataDir != "" {
				options.ModelsDir = filepath.Join(options.DataDir, "models")
			}
			if cluster.url != "" {
				if options.DataDir != "" {
					return fmt.Errorf("--data and --nats exclude each other: with --nats the jobs are in the NATS servers")
				}
				if options.Broker, err = cluster.open(c.Context(), "anomaly serve", log); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, options.Broker.Close()) }()
			}
			server, err := api.New(e, log, options)
			if err != nil {
				return err
			}
			l, err := listen(addr, server)
			if err != nil {
				return err
			}
			provider, reason := e.Provider()
			library, version := e.Library()
			log.Info("listening", slog.String("address", l.Addr().String()), slog.String("execution_provider", string(provider)),
				slog.String("because", reason), slog.String("onnxruntime", version), slog.String("library", library),
				slog.Int("threads", e.Threads()))
			return serveUntilDone(c.Context(), server, l, grace, log)
		},
	}
	f := c.Flags()
	engine.add(c)
	f.StringVar(&addr, "addr", "", "address to listen on, host:port, or host alone for the port in PORT (default: 127.0.0.1:$PORT, 127.0.0.1:"+defaultPort+" without PORT)")
	logs.add(c)
	traces.add(f)
	f.DurationVar(&grace, "grace", 10*time.Second, "time for running requests to end after SIGTERM before they are cancelled")
	f.StringVar(&tokenFile, "token-file", "", "file with the token that callers must send as Authorization: Bearer; /health, /livez, /readyz and /v2/health need none (default: no token)")
	f.StringVar(&tokens, "tokens", "", "file with tokens that callers may send instead, one in each line; jobs of several callers are run in turns (default: none)")
	f.StringArrayVar(&options.Origins, "cors-origin", nil, "origin of web pages that may read responses, such as https://example.org, or *; may be repeated (default: none)")
	f.StringVar(&pprofAddr, "pprof-addr", "", "loopback address to serve Go's profiles at, such as 127.0.0.1:6060 (default: none)")
	f.StringVar(&options.ModelsDir, "models", "", "folder of named models, read at start (default: models in the folder of --data, without that no named models)")
	f.StringVar(&options.DataDir, "data", "", "folder of the jobs, which then survive the end of the service (default: a temporary folder)")
	f.BoolVar(&noPage, "no-page", false, "do not serve the web page at /")
	f.StringSliceVar(&options.CallbackHosts, "callback-allow", nil, "`HOST[,HOST]` that jobs may have a callback_url at; may be repeated (default: no callbacks)")
	f.StringVar(&secretFile, "callback-secret-file", "", "file with the secret by which callbacks are signed (default: not signed)")
	cluster.add(f)
	addLimits(f, &options)
	f.StringVar(&options.TempDir, "temp-dir", "", "folder for uploads and for prepared images that do not fit in memory (default: the system's)")
	f.Int64Var(&options.Seed, "seed", 0, "random seed of every training")
	return c
}

// listen listens on the address for the value of --addr. If it cannot, it shuts the server
// down.
func listen(addr string, server *api.Server) (net.Listener, error) {
	l, err := net.Listen("tcp", address(addr))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot listen: %w; choose another address by --addr or PORT", err), server.Shutdown(0))
	}
	return l, nil
}

// serveUntilDone serves until ctx ends or the listener fails, and shuts the server down.
// What runs then has the time grace to end.
func serveUntilDone(ctx context.Context, server *api.Server, l net.Listener, grace time.Duration, log *slog.Logger) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return errors.Join(err, server.Shutdown(0))
	case <-ctx.Done():
	}
	log.Info("shutting down", slog.Duration("grace", grace))
	if err := server.Shutdown(grace); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func healthCommand() *cobra.Command {
	var addr string
	c := &cobra.Command{
		Use:   "health",
		Short: "Check that a running service is healthy, for the health check of a container",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), 5*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address(addr)+"/health", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			var health struct{ Status, Service string }
			if err := json.NewDecoder(res.Body).Decode(&health); err != nil {
				return fmt.Errorf("unexpected response: %w", err)
			}
			if health.Status != "healthy" || health.Service != api.ServiceName {
				return fmt.Errorf("%s responds with status %q", address(addr), health.Status)
			}
			fmt.Println(health.Status)
			return nil
		},
	}
	c.Flags().StringVar(&addr, "addr", "", "address of the service, host:port, or host alone for the port in PORT (default: 127.0.0.1:$PORT, 127.0.0.1:"+defaultPort+" without PORT)")
	return c
}

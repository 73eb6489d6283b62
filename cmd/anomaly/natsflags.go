package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/spf13/pflag"
)

// natsFlags are the flags of the connection to the NATS servers of a cluster.
type natsFlags struct {
	url                                     string
	credentials, nkey, ca, certificate, key string
	replicas                                int
}

// defaultReplicas is the number of NATS servers that store each message.
const defaultReplicas = 3

func (n *natsFlags) add(f *pflag.FlagSet) {
	f.StringVar(&n.url, "nats", "", "`URL[,URL]` of the NATS servers of a cluster, such as nats://nats:4222 (default: none; a worker takes that in NATS_URL)")
	f.StringVar(&n.credentials, "nats-creds", "", "file with the credentials for NATS (.creds)")
	f.StringVar(&n.nkey, "nats-nkey", "", "file with the seed of an nkey for NATS")
	f.StringVar(&n.ca, "nats-ca", "", "file with the certificates, in PEM, that the NATS servers' certificates are checked with")
	f.StringVar(&n.certificate, "nats-cert", "", "file with a client certificate for NATS, in PEM")
	f.StringVar(&n.key, "nats-key", "", "file with the private key of --nats-cert, in PEM")
	f.IntVar(&n.replicas, "replicas", defaultReplicas, "number of NATS servers that store each message: 1, 3 or 5, and the same in all processes")
}

// errNoNATS is returned by a command that needs a cluster.
var errNoNATS = errors.New("no NATS servers: give their URL by --nats or NATS_URL")

// open connects to the cluster.
func (n *natsFlags) open(ctx context.Context, name string, log *slog.Logger) (*broker.Broker, error) {
	if n.replicas != 1 && n.replicas != 3 && n.replicas != 5 {
		return nil, fmt.Errorf("--replicas must be 1, 3 or 5, got %d", n.replicas)
	}
	if (n.certificate == "") != (n.key == "") {
		return nil, errors.New("--nats-cert and --nats-key must be given together")
	}
	for _, path := range []string{n.credentials, n.nkey, n.ca, n.certificate, n.key} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	log.Info("connecting to NATS")
	b, err := broker.Open(ctx, broker.Options{
		URL: n.url, Credentials: n.credentials, NKey: n.nkey, CA: n.ca, Certificate: n.certificate, Key: n.key,
		Replicas: n.replicas, Name: name, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot connect to NATS: %w", err)
	}
	log.Info("connected to NATS", slog.String("server", b.Conn.ConnectedServerName()), slog.String("node", b.Node()))
	return b, nil
}

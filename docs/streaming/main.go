// Command streaming sends images to a cluster over NATS and prints their verdicts, as one JSON
// object in each line. It is the example of docs/streaming.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	url := flag.String("nats", nats.DefaultURL, "URL of the NATS servers")
	model := flag.String("model", "", "name of the stored model")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *url, *model, flag.Args(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

// run sends the files and prints a verdict on each, in the order in which they arrive.
func run(ctx context.Context, url, model string, files []string, out io.Writer) error {
	conn, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	// Verdicts from now on. The consumer is removed when the program ends.
	verdicts, err := js.OrderedConsumer(ctx, "verdicts", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"anomaly.verdicts." + model}, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		return err
	}
	messages, err := verdicts.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()

	waiting := map[string]string{} // files by the ids of their images
	batch := fmt.Sprint(time.Now().UnixNano())
	for i, file := range files {
		image, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		id := fmt.Sprint(batch, "-", i)
		if err := publish(ctx, js, model, id, image); err != nil {
			return err
		}
		waiting[id] = file
	}
	for len(waiting) > 0 {
		m, err := messages.Next()
		if err != nil {
			return err
		}
		id := m.Headers().Get(jetstream.MsgIDHeader)
		file, ok := waiting[id]
		if !ok {
			continue // of another program, or once more
		}
		delete(waiting, id)
		line, err := json.Marshal(map[string]any{"file": file, "status": m.Headers().Get("Anomaly-Status"), "verdict": json.RawMessage(m.Data())})
		if err != nil {
			return err
		}
		fmt.Fprintln(out, string(line))
	}
	return nil
}

// publish sends an image. While too many images wait for the workers, it waits too. An image that
// is sent twice with the same id, because an answer was lost, is judged once.
func publish(ctx context.Context, js jetstream.JetStream, model, id string, image []byte) error {
	for {
		m := &nats.Msg{Subject: "anomaly.images." + model, Data: image, Header: nats.Header{jetstream.MsgIDHeader: {id}}}
		_, err := js.PublishMsg(ctx, m)
		full := err != nil && strings.Contains(err.Error(), "maximum bytes exceeded")
		if !full && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, nats.ErrNoResponders) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

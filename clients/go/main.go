// Calls every service of the suite: an example to copy from. connect.go, status.go and follow.go are what every client
// wants; each other file calls one service.
package main

//go:generate ./generate

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// In this order each finds what it needs: the run trains the reward model that scores.
var examples = []struct {
	service string
	run     func(context.Context, *suite) error
}{
	{"generation", callGeneration},
	{"simulator", callSimulator},
	{"orchestrator", callOrchestrator},
	{"reward", callReward},
	{"trainer", callTrainer},
	{"judge", callJudge},
}

// What the examples share. The connections are safe for concurrent use, and each is made once.
type suite struct {
	connections map[string]*connection
	timeout     time.Duration // of one unary call, or of a stream that has an end of its own
}

func main() {
	// Where a suite on this machine listens by default.
	targets := map[string]string{
		"generation": "127.0.0.1:50051", "reward": "127.0.0.1:50052", "simulator": "127.0.0.1:50053",
		"trainer": "127.0.0.1:50054", "orchestrator": "127.0.0.1:50055", "judge": "127.0.0.1:50056",
	}
	flag.Func("store", "folder in which `almost up` left its addresses", func(store string) error {
		return readAddresses(store, targets)
	})
	flag.Func("target", "`service=address`, host:port or dns:///name:port; may be repeated", func(value string) error {
		service, address, found := strings.Cut(value, "=")
		if _, known := targets[service]; !found || !known {
			return errors.New("want service=address")
		}
		targets[service] = address
		return nil
	})
	timeout := flag.Duration("timeout", time.Minute, "deadline of a call, tries included; watching has none")
	var s security
	flag.StringVar(&s.ca, "tls_ca", "", "PEM `file` of the authority that signed the servers' certificates; empty: plain text")
	flag.StringVar(&s.cert, "tls_cert", "", "PEM `file` of our own certificate, for servers that ask for one")
	flag.StringVar(&s.key, "tls_key", "", "PEM `file` of its key")
	flag.StringVar(&s.serverName, "tls_server_name", "", "`name` in the servers' certificates, where it is not the address's")
	flag.StringVar(&s.tokenFile, "token_file", "", "`file` with the bearer token that the servers want")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Usage: go run . [flags] [generation|simulator|orchestrator|reward|trainer|judge]…")
		flag.PrintDefaults()
	}
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, targets, s, *timeout, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, describe(err))
		os.Exit(1)
	}
}

// Runs the examples of the named services, or all of them.
func run(ctx context.Context, targets map[string]string, s security, timeout time.Duration, services []string) error {
	for _, service := range services {
		if _, known := targets[service]; !known {
			return fmt.Errorf("no service is called %q", service)
		}
	}
	suite := &suite{connections: map[string]*connection{}, timeout: timeout}
	for service, target := range targets {
		connection, err := connect(target, s)
		if err != nil {
			return err
		}
		defer connection.Close()
		suite.connections[service] = connection
	}
	for _, example := range examples {
		if len(services) > 0 && !slices.Contains(services, example.service) {
			continue
		}
		fmt.Println(example.service)
		if err := example.run(ctx, suite); err != nil {
			return err
		}
	}
	return nil
}

// The addresses of a running `almost up --store STORE`.
func readAddresses(store string, targets map[string]string) error {
	data, err := os.ReadFile(filepath.Join(store, "up.json"))
	if err != nil {
		return err
	}
	var up struct {
		Services map[string]struct{ Address string }
	}
	if err := json.Unmarshal(data, &up); err != nil {
		return err
	}
	for service, at := range up.Services {
		targets[service] = at.Address
	}
	return nil
}

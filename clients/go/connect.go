package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it healthCheckConfig does nothing
	"google.golang.org/grpc/keepalive"
)

// clients/service_config.json: replicas take turns, those not SERVING are left out, UNAVAILABLE is tried again.
//
//go:embed gen/service_config.json
var serviceConfig string

// How a server is trusted, and how we show who we are. All but serverName are paths of files; empty: not used.
type security struct {
	ca, cert, key string
	serverName    string
	tokenFile     string
}

type connection = grpc.ClientConn

// A connection to `target` (host:port, or dns:///name:port for every address of that name). It is made in the background
// and when it is first used: a server that is down is an error of the call, UNAVAILABLE.
func connect(target string, s security) (*connection, error) {
	transport := insecure.NewCredentials()
	if s.ca != "" {
		config, err := s.tls()
		if err != nil {
			return nil, err
		}
		transport = credentials.NewTLS(config)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)), // the most that the servers send; Go's own is 4 MiB
	}
	if s.tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearerToken{s.tokenFile}))
	}
	return grpc.NewClient(target, options...)
}

func (s security) tls() (*tls.Config, error) {
	pem, err := os.ReadFile(s.ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: s.serverName}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", s.ca)
	}
	if s.cert != "" {
		pair, err := tls.LoadX509KeyPair(s.cert, s.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// The token in `file`, read again for every call: it may be replaced while we run.
type bearerToken struct{ file string }

func (t bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(t.file)
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

// The servers take tokens over plain connections as well, on which they can be read on the way.
func (bearerToken) RequireTransportSecurity() bool { return false }

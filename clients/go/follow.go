package main

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An event of a run or of a job.
type event interface{ GetSequence() int64 }

// Reads a stream of events to its end, over restarts of the service: gRPC tries a stream again only until its first answer,
// so one that breaks later is opened again after the last event seen. `see` gets each event once, and no heartbeat.
func follow[E any, P interface {
	*E
	event
}](ctx context.Context, open func(after int64) (grpc.ServerStreamingClient[E], error), see func(P)) error {
	const wait, patience = time.Second, time.Minute
	var seen int64
	alive := time.Now()
	for {
		stream, err := open(seen)
		for err == nil {
			var event P
			if event, err = stream.Recv(); err == nil {
				alive = time.Now()
				if event.GetSequence() > seen { // a heartbeat repeats the last one
					seen = event.GetSequence()
					see(event)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if status.Code(err) != codes.Unavailable || time.Since(alive) > patience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

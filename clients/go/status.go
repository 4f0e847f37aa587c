package main

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
)

// What a person should read of an error: for one of a call its code, message, and the details that say what to do.
func describe(err error) string {
	s, of_call := status.FromError(err)
	if !of_call {
		return err.Error()
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", s.Code(), s.Message())
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				fmt.Fprintf(&text, "\n  field %s: %s", violation.GetField(), violation.GetDescription())
			}
		case *errdetails.ErrorInfo:
			fmt.Fprintf(&text, "\n  reason %s of %s", detail.GetReason(), detail.GetDomain())
		case *errdetails.RetryInfo:
			// Of RESOURCE_EXHAUSTED, which nothing tries again by itself: only the caller knows whether to wait.
			fmt.Fprintf(&text, "\n  try again in %v", detail.GetRetryDelay().AsDuration())
		}
	}
	return text.String()
}

// The error of one item of a batch, which leaves the others be.
func itemError(s *spb.Status) error { return status.ErrorProto(s) }

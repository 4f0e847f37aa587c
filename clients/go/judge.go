package main

import (
	"context"
	"fmt"

	judgev1 "example.com/almost/gen/almost/judge/v1"
)

// Asks which of two answers is better.
func callJudge(ctx context.Context, suite *suite) error {
	ctx, cancel := context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	answer, err := judgev1.NewJudgeServiceClient(suite.connections["judge"]).Compare(ctx, &judgev1.CompareRequest{
		Items: []*judgev1.Comparison{{Prompt: "What is 2 plus 3?", A: "2 plus 3 is 5.", B: "2 plus 3 is 4."}},
	})
	if err != nil {
		return err
	}
	for _, item := range answer.GetItems() {
		if failed := item.GetError(); failed != nil {
			return itemError(failed)
		}
		fmt.Printf("  %s by %s: %s\n", item.GetResult().GetVerdict(), answer.GetJudgeId(), item.GetResult().GetReason())
	}
	return nil
}

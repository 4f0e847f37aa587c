package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	simulatorv1 "example.com/almost/gen/almost/simulator/v1"
	typesv1 "example.com/almost/gen/almost/types/v1"
)

// Mines prompts from two seeds with the model that the generation example has loaded.
func callSimulator(ctx context.Context, suite *suite) error {
	ctx, cancel := context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	stream, err := simulatorv1.NewSimulatorServiceClient(suite.connections["simulator"]).GeneratePrompts(ctx,
		&simulatorv1.GeneratePromptsRequest{
			Model:       &simulatorv1.ModelRef{Name: policy},
			Seeds:       []string{"Where is Tiben?", "What is 1 plus 2?"},
			NumAttempts: 4,
			NumWanted:   4,
			NumShots:    proto.Int32(2),
			Sampling:    &typesv1.SamplingParams{TopP: proto.Float64(0.95), MaxNewTokens: proto.Int32(40)},
			Filter:      &simulatorv1.PromptFilter{Preset: simulatorv1.PromptFilter_PRESET_WORLD},
		})
	if err != nil {
		return err
	}
	for {
		mined, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		kept := "kept"
		if mined.GetDropReason() != "" {
			kept = mined.GetDropReason()
		}
		fmt.Printf("  attempt %d: %q %s\n", mined.GetAttempt(), mined.GetPrompt(), kept)
	}
}

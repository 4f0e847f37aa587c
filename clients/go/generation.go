package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	generationv1 "example.com/almost/gen/almost/generation/v1"
	typesv1 "example.com/almost/gen/almost/types/v1"
)

const policy = "models/go-L"

// Loads a model, lists all, and lets it answer twice: at once, and as a stream of the same text.
func callGeneration(ctx context.Context, suite *suite) error {
	ctx, cancel := context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	client := generationv1.NewGenerationServiceClient(suite.connections["generation"])

	// A path beneath the service's --model_root. Loading the same again is harmless.
	_, err := client.LoadModel(ctx, &typesv1.LoadModelRequest{Name: policy, Source: "common/world/models/L"})
	if err != nil {
		return err
	}
	models, err := client.ListModels(ctx, &typesv1.ListModelsRequest{})
	if err != nil {
		return err
	}
	for _, model := range models.GetModels() {
		fmt.Printf("  %s: %s, %d parameters\n", model.GetName(), model.GetArchitecture(), model.GetNumParameters())
	}

	item := &generationv1.GenerateItem{
		Input: &typesv1.Input{Input: &typesv1.Input_Messages{Messages: &typesv1.Messages{
			Messages: []*typesv1.Message{{Role: "user", Content: "What is 2 plus 3?"}},
		}}},
		Sampling: &typesv1.SamplingParams{Seed: 7, TopP: proto.Float64(0.95), MaxNewTokens: proto.Int32(40), Stop: []string{"\n"}},
	}
	answer, err := client.Generate(ctx, &generationv1.GenerateRequest{Model: policy, Items: []*generationv1.GenerateItem{item}})
	if err != nil {
		return err
	}
	for _, result := range answer.GetItems() {
		if failed := result.GetError(); failed != nil {
			return itemError(failed)
		}
		for _, completion := range result.GetResult().GetCompletions() {
			fmt.Printf("  answer:%s\n", completion.GetText())
		}
	}

	stream, err := client.StreamGenerate(ctx, &generationv1.StreamGenerateRequest{Model: policy, Item: item})
	if err != nil {
		return err
	}
	fmt.Print("  stream:")
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			fmt.Println()
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Print(piece.GetText())
	}
}

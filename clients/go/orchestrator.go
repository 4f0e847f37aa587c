package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	orchestratorv1 "example.com/almost/gen/almost/orchestrator/v1"
	trainerv1 "example.com/almost/gen/almost/trainer/v1"
	typesv1 "example.com/almost/gen/almost/types/v1"
)

const runID = "go-example"

// The method up to the reward model: two models answer given prompts, and the larger one's answers count as better. The YAML
// of deploy/recipes is the same message.
func recipe() *orchestratorv1.Recipe {
	var prompts []string
	for a := 1; a <= 4; a++ {
		for b := 1; b <= 4; b++ {
			prompts = append(prompts, fmt.Sprintf("What is %d plus %d?", a, b))
		}
	}
	return &orchestratorv1.Recipe{
		DisplayName:  "A reward model, asked for in Go",
		Seed:         1,
		PromptFormat: "world",
		Models: []*orchestratorv1.VanillaModel{
			{Id: "L", Source: "common/world/models/L"},
			{Id: "S", Source: "common/world/models/S"},
		},
		Prompts: &orchestratorv1.PromptStage{GivenPrompts: prompts},
		Responses: &orchestratorv1.ResponseStage{
			Configurations: []*orchestratorv1.Configuration{{Id: "L-0", Model: "L"}, {Id: "S-0", Model: "S"}}, // best first
			Sampling:       &typesv1.SamplingParams{MaxNewTokens: proto.Int32(40), Stop: []string{"\n"}},
			Filter:         "world",
		},
		Comparisons: &orchestratorv1.ComparisonStage{
			Rule: orchestratorv1.ComparisonStage_RULE_WORLD, MinRankGap: proto.Int32(1), LengthFilter: proto.Bool(false),
		},
		RewardModel: &orchestratorv1.RewardModelStage{
			BaseModel: "S",
			Spec:      &trainerv1.RewardModelSpec{Epochs: 1, BatchSize: 4, MaxTokens: 128},
			Optimizer: &trainerv1.OptimizerSpec{LearningRate: 5e-4, MaxGradNorm: 1},
		},
	}
}

// Starts a run and watches it to its end. Under the same id the same run is found again, not started twice.
func callOrchestrator(ctx context.Context, suite *suite) error {
	client := orchestratorv1.NewOrchestratorServiceClient(suite.connections["orchestrator"])
	call, cancel := context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	run, err := client.CreateRun(call, &orchestratorv1.CreateRunRequest{RunId: runID, Recipe: recipe()})
	if err != nil {
		return err
	}

	// No deadline: runs take hours. Keepalive finds out when the other side is gone.
	err = follow(ctx, func(after int64) (grpc.ServerStreamingClient[orchestratorv1.RunEvent], error) {
		return client.WatchRun(ctx, &orchestratorv1.WatchRunRequest{Name: run.GetName(), AfterSequence: after})
	}, func(event *orchestratorv1.RunEvent) {
		if stage := event.GetStage(); stage != nil {
			fmt.Printf("  %s: %s, %d of %d\n", stage.GetId(), stage.GetState(), stage.GetItemsDone(), stage.GetItemsTotal())
		}
	})
	if err != nil {
		return err
	}

	call, cancel = context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	run, err = client.GetRun(call, &orchestratorv1.GetRunRequest{Name: run.GetName()})
	if err != nil {
		return err
	}
	fmt.Printf("  %s: %s\n", run.GetName(), run.GetState())
	return itemError(run.GetError()) // nil when it succeeded
}

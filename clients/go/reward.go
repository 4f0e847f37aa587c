package main

import (
	"context"
	"errors"
	"fmt"

	orchestratorv1 "example.com/almost/gen/almost/orchestrator/v1"
	rewardv1 "example.com/almost/gen/almost/reward/v1"
	typesv1 "example.com/almost/gen/almost/types/v1"
)

// Scores two answers with the reward model of the orchestrator's example.
func callReward(ctx context.Context, suite *suite) error {
	ctx, cancel := context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	source, err := trainedModel(ctx, orchestratorv1.NewOrchestratorServiceClient(suite.connections["orchestrator"]))
	if err != nil {
		return err
	}

	client := rewardv1.NewRewardServiceClient(suite.connections["reward"])
	model, err := client.LoadModel(ctx, &typesv1.LoadModelRequest{Name: "models/go-rm", Source: source})
	if err != nil {
		return err
	}
	models, err := client.ListModels(ctx, &typesv1.ListModelsRequest{})
	if err != nil {
		return err
	}
	for _, each := range models.GetModels() {
		fmt.Printf("  %s: %s, %d parameters\n", each.GetName(), each.GetArchitecture(), each.GetNumParameters())
	}

	request := &rewardv1.ScoreRequest{
		Model:          model.GetName(),
		ExpectedDigest: model.GetDigest(), // FAILED_PRECONDITION from a replica that holds another under this name
	}
	for _, response := range []string{"2 plus 3 is 5.", "No idea."} {
		request.Items = append(request.Items, &rewardv1.ScoreItem{
			Context: &rewardv1.ScoreItem_Prompt{Prompt: "What is 2 plus 3?"}, Response: response,
		})
	}
	scores, err := client.Score(ctx, request)
	if err != nil {
		return err
	}
	for i, item := range scores.GetItems() {
		if failed := item.GetError(); failed != nil {
			return itemError(failed)
		}
		fmt.Printf("  score %+.3f: %s\n", item.GetResult().GetScore(), request.GetItems()[i].GetResponse())
	}
	return nil
}

// `artifacts/{digest}` of the run's reward model.
func trainedModel(ctx context.Context, client orchestratorv1.OrchestratorServiceClient) (string, error) {
	request := &orchestratorv1.ListArtifactsRequest{Run: "runs/" + runID}
	for {
		page, err := client.ListArtifacts(ctx, request)
		if err != nil {
			return "", err
		}
		for _, artifact := range page.GetArtifacts() {
			if artifact.GetStage() == "reward_model" && artifact.GetKind() == "model" {
				return artifact.GetName(), nil
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return "", errors.New("runs/" + runID + " has no reward model")
		}
	}
}

package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	trainerv1 "example.com/almost/gen/almost/trainer/v1"
)

// Lists the training jobs and watches the newest to its end; events of one that has ended come as well.
func callTrainer(ctx context.Context, suite *suite) error {
	client := trainerv1.NewTrainerServiceClient(suite.connections["trainer"])
	call, cancel := context.WithTimeout(ctx, suite.timeout)
	defer cancel()
	jobs, err := client.ListJobs(call, &trainerv1.ListJobsRequest{PageSize: 10})
	if err != nil {
		return err
	}
	for _, job := range jobs.GetJobs() {
		fmt.Printf("  %s: %s, step %d of %d\n", job.GetName(), job.GetState(), job.GetStep(), job.GetNumSteps())
	}
	if len(jobs.GetJobs()) == 0 {
		return nil
	}
	return follow(ctx, func(after int64) (grpc.ServerStreamingClient[trainerv1.JobEvent], error) {
		return client.WatchJob(ctx, &trainerv1.WatchJobRequest{Name: jobs.GetJobs()[0].GetName(), AfterSequence: after})
	}, func(event *trainerv1.JobEvent) {
		if loss, reported := event.GetMetrics()["loss"]; reported {
			fmt.Printf("  step %d: loss %.3f\n", event.GetStep(), loss)
		}
	})
}

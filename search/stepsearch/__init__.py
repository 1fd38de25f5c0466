"""Search few-step sampling schedules and prove them on held-out seeds."""

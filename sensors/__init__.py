"""What starts trips: schedules, and the messages of queues. Knows nothing of routes."""

"""What starts trips: schedules now, queues next. Knows nothing of routes."""

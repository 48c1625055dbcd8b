"""What runs inside a queue job: claims rows, runs them in workers, publishes outcomes."""

"""What happens over time: events, scheduling, episodes."""

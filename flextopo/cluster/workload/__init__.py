"""What arrives: generated workloads, traces, and the event tape."""

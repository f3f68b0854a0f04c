"""The cluster at one moment: pods, placements, candidates, and what a decision costs."""

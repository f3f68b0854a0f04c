"""FlexTopo-Bench: frozen tracks, result files that others send, and the leaderboard made of them."""

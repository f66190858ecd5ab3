"""Training losses: two-stage bipartite matching and the criterion."""

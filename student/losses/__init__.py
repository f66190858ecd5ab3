"""Training losses: the two-stage bipartite matching, the criterion with all loss terms, and the IoU
of boxes that both need.
"""

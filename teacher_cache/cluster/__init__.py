"""Shares a build's shards out: to this process, to workers of this machine, or to a cluster."""

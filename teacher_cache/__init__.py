"""Phase one: a frozen detector and CLIP, asked once; their answers in HDF5 shards."""

"""The SWIG-HOI protocol: average precision of the evaluated interactions, and the predictions files
of the public projects."""

"""Analysis of results for the report: comparison of several runs, tables of classes, kinds of
errors, confusion between verbs, precision-recall curves, training logs."""

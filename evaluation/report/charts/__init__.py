"""Charts with matplotlib as SVG and PNG: style and colours, bars, curves, the confusion matrix."""

"""Charts with matplotlib as SVG and PNG, for the report and for other commands: style and colours,
bars, curves, the confusion matrix."""

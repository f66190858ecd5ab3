"""Pictures of numbers: on the report's page as SVG and PNG, and as files of their own."""

from evaluation.charts.canvas import Chart

__all__ = ["Chart"]

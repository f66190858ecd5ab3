"""Pictures of numbers, each as SVG for the page and as PNG."""

from evaluation.charts.canvas import Chart, require_report_packages

__all__ = ["Chart", "require_report_packages"]

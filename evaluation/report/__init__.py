"""The HTML report on one or several results: loading of the dataset and predictions behind them,
sections with tables and charts, a gallery of test images, the page, and its PNG files."""

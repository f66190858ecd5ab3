"""The study: ablations of the method on the toy dataset, with several seeds each.

`experiments` defines the rows of the tables and the commands behind them (`artifacts`), `runner`
runs the missing commands, and `results` writes a JSON file and a figure for each experiment and a
page of all. `datasets` and `other_prompts` are commands of the study's own.
"""

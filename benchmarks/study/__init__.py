"""The study: ablations of the method on the toy dataset, with several seeds each.

`experiments.py`, `few_label_experiments.py` and `text_head_experiments.py` define the experiments,
`artifacts.py` the commands behind them. `runner.py` and `parallel.py` run the missing commands;
some of these are the modules `unlabelled_images`, `images_without_verbs`, `vocabulary_without_verb`
and `other_prompts`. `records.py` reads recorded results; `tables.py`, `figures.py` and `page.py`
write the results.
"""

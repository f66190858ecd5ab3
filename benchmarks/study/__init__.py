"""The study: what each choice of the method does to actions without labels, on the toy dataset.

`experiments.py` says what is compared, `pieces.py` by which commands it is made, `workshop.py` runs
what is missing, `tables.py`, `figures.py` and `page.py` show it.
"""

"""The toy dataset: drawn images of people and objects in HICO-DET's layout, and its small backbone.

It takes the place of a real dataset in tests and demonstrations: small, without download, and with
exact boxes.
"""

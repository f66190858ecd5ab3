"""The toy dataset: drawn images of people and objects in HICO-DET's layout, and its small backbone.

It takes the place of a real dataset in tests and demonstrations: small, without download, and with
exact boxes. Its trained teacher and detector are in `models`.
"""

from pathlib import Path

# Name of the dataset's vocabulary, and of its teacher and detector where a command takes a model.
TOY = "toy"
DETECTOR = Path(__file__).parent / "models" / "detector.safetensors"
TEACHER = Path(__file__).parent / "models" / "teacher"

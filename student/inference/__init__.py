"""Prediction: images, datasets, exports, the Python interface, `eoid-predict`."""

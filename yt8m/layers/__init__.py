"""Building blocks of the models: Keras layers and functions on `keras.ops` alone."""

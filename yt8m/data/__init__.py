"""Reading the dataset: records, their index, the choice of frames, the pipeline."""

"""Is a model right: the stages of the pipeline compared, accuracy, and the verdict over a bundle."""

"""A model as it leaves a run: export, model card, predictor."""

"""The study of noise priors: a grid of fine-tuning runs from one image model, scored, compared and explained."""

"""Descriptions of models, from the catalog or from a Hugging Face config.json; what they weigh and compute."""

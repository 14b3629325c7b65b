"""A Process and its model, alone in this folder: Lava imports every file beside a Process when it looks for models."""

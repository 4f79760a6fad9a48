"""The plain model, its weights in and out, its losses and its words."""

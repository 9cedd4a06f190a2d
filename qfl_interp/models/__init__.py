"""All that knows TransformerLens: building models, hook points, passes, metrics."""

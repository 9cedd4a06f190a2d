"""The kit that figures are made of; each lens' own figure lies in its folder of `analyses.lenses`."""

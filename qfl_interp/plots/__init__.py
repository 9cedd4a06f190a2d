"""The kit that figures are made of; each lens' own figure lies in its folder of `qfl_interp.analyses.lenses`."""

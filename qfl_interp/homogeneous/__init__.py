"""Homogeneous networks beyond the edge of stability: depthwise scaling and the Taylor coefficients of a step."""

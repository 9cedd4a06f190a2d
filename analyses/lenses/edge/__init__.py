"""How far beyond the edge of stability does a homogeneous network train?"""

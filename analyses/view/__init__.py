"""A live page over all runs below a folder: `qfl view`. Plotly's Dash draws it; nothing leaves this machine."""

"""Published results beside ours, row by row: `python -m zeroseg_jax.evaluate.reproduce`."""

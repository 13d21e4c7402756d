"""What a run needs and takes on devices that are not there: `sttts-jax plan`."""
